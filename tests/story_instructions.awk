# Instructions to write a story in an exact format, for tests/e2e_stories_lora.sh: one JSON record a line, the same on
# every machine. Every pairing of a child, a thing and a feeling is a prompt; those whose number is 3 modulo 7 are held
# out. usage: awk -v held_out=0|1 -f story_instructions.awk </dev/null
#
#   prompt: Write a story about Lily and a red ball.
#   Title: Lily and the red ball
#   Story: One day, Lily found a red ball. …
#   Moral: Share with your friends.
BEGIN {
    n_children = split("Lily Tom Mia Ben Sara Max Anna Tim Lucy Sam", child, " ")
    n_colours = split("red blue big little shiny green", colour, " ")
    n_things = split("ball car doll hat box cup boat kite", thing, " ")
    n_places = split("park garden house woods", place, " ")
    n_helpers = split("mom dad friend dog", helper, " ")
    n_morals = split("Share with your friends.|Be kind to others.|Always say thank you.|Do not give up.", moral, "|")
    for (c = 1; c <= n_children; c++)
        for (k = 1; k <= n_colours; k++)
            for (t = 1; t <= n_things; t++) {
                i = number++
                if ((i % 7 == 3) != (held_out == 1)) continue
                what = colour[k] " " thing[t]
                story = "One day, " child[c] " found a " what " in the " place[1 + t % n_places] ". "
                story = story child[c] " was very happy and showed it to " (c % 2 ? "her" : "his") " " helper[1 + k % n_helpers] ". "
                story = story "They played with the " thing[t] " all day."
                printf "{\"prompt\": \"Write a story about %s and a %s.\", ", child[c], what
                printf "\"completion\": \"Title: %s and the %s\\nStory: %s\\nMoral: %s\"}\n", child[c], what, story, moral[1 + (k + t) % n_morals]
            }
}
