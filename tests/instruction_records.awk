# Instructions that ask for an answer in an exact form, for tests/instruction_task.sh and tests/e2e_instruction.sh.
# awk -v part=train|test|answers -v invented=N: records to learn from; held-out prompts as records; for each of these its
# form and, behind a tab, its answer. A prompt names one of six forms and a word. Words of stories: a sixth of the pairs
# and ten words wholly are held out. Invented words (N of them, "timo", "badun") are there so that a word is copied, not
# remembered: they are learned from alone.
function random(n) { seed = (seed * 16807) % 2147483647; return seed % n }
function letter(of) { return substr(of, 1 + random(length(of)), 1) }
function invent(   w, k) {
    w = ""
    for (k = 2 + random(2); k > 0; k--) w = w letter("bdfghklmnprstw") letter("aeiou")
    return random(2) ? w : w letter("lmnrst")
}
function give(held, word, asked, before, after,   plain) {
    if (part == "train" && !held) printf "{\"prompt\": \"%s: %s\", \"completion\": \"%s\"}\n", asked, word, before word after
    if (part == "test" && held) printf "{\"prompt\": \"%s: %s\"}\n", asked, word
    if (part == "answers" && held) print asked "\t" before word after
}
function ask(i, form, w) {
    held = i > 0 && (i > n - 10 || (i + 5 * form) % 6 == 0)
    if (form == 0) give(held, w, "Put it in brackets", "[", "]")
    if (form == 1) give(held, w, "Say it two times", w " and ", "")
    if (form == 2) give(held, w, "Ask where it is", "Where is the ", "?")
    if (form == 3) give(held, w, "Say that it is big", "The ", " is big.")
    if (form == 4) give(held, w, "Say hello to it", "Hello, ", "!")
    if (form == 5) give(held, w, "Make a list of it", "- ", "")
}
BEGIN {
    seed = 7
    n = split("cat dog bird fish bear frog duck mouse ball box car boat hat book cake tree flower house door bed cup toy doll kite drum bell rock star moon sun leaf stick bag shoe ring train truck park lake hill garden kitchen apple cookie soup milk egg bug bee cow pig hen fox owl king girl boy baby man wind", word, " ")
    for (i = 1; i <= n; i++) for (form = 0; form < 6; form++) ask(i, form, word[i])
    for (i = 0; i < invented; i++) ask(0, i % 6, invent())
}
