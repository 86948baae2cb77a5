# Instructions that ask for an answer in an exact form, for tests/instruction_task.sh and tests/e2e_instruction.sh.
# awk -v part=train|test|answers: records to learn from; held-out prompts as records; what these must be answered with.
# Each of six forms is asked for with every word; a sixth of the pairs is held out, and six words wholly.
function give(i, form, word, asked, answer) {
    held = i >= n - 6 || (i + 5 * form) % 6 == 0
    if (part == "train" && !held) printf "{\"prompt\": \"%s\", \"completion\": \"%s\"}\n", asked, answer
    if (part == "test" && held) printf "{\"prompt\": \"%s\"}\n", asked
    if (part == "answers" && held) print answer
}
BEGIN {
    n = split("cat dog bird fish bear frog duck mouse ball box car boat hat book cake tree flower house door bed cup toy doll kite drum bell rock star moon sun leaf stick bag shoe ring train truck park lake hill garden kitchen apple cookie soup milk egg bug bee cow pig hen fox owl king girl boy baby man wind", word, " ")
    for (i = 1; i <= n; i++) {
        w = word[i]
        give(i, 0, w, "Put it in brackets: " w, "[" w "]")
        give(i, 1, w, "Say it two times: " w, w " and " w)
        give(i, 2, w, "Ask where it is: " w, "Where is the " w "?")
        give(i, 3, w, "Say that it is big: " w, "The " w " is big.")
        give(i, 4, w, "Say hello to it: " w, "Hello, " w "!")
        give(i, 5, w, "Make a list of it: " w, "- " w)
    }
}
