# Reward against KL, an SVG on standard output; with -v table=1 a table and a chart of letters instead.
# Lines: METHOD STEP REWARD STANDARD_ERROR KL STANDARD_ERROR, a method's in the order of its training; with a last word
# "final" the one checkpoint that was chosen, measured with other prompts: it is drawn large, with its 95 % intervals.
# -v base=SHARE: of the base's answers that are rewarded. No policy with an expected reward of p is nearer to the base
# than KL(p) = p log(p / base) + (1 - p) log((1 - p) / (1 - base)): the base conditioned on reward, and on none, mixed.
# -v answers=N, -v final_answers=N: to each point, for the caption.
function bound(p) { return (p > 0 ? p * log(p / base) : 0) + (p < 1 ? (1 - p) * log((1 - p) / (1 - base)) : 0) }
function x_of(kl) { return left + (kl > most ? most : kl) / most * width }
function y_of(reward) { return top + (1 - reward) * height }
function text(x, y, anchor, content, more) {
    printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y, anchor, more, content
}
function mark(shape, x, y, colour, size) {
    printf "<g transform=\"translate(%.1f %.1f) scale(%.1f)\" fill=\"%s\">", x, y, size, colour
    if (shape == 0) printf "<circle r=\"4\"/>"
    else if (shape == 1) printf "<rect x=\"-3.5\" y=\"-3.5\" width=\"7\" height=\"7\"/>"
    else if (shape == 2) printf "<path d=\"M0 -5l4.6 8h-9.2z\"/>"
    else if (shape == 3) printf "<path d=\"M0 -5l5 5l-5 5l-5 -5z\"/>"
    else printf "<path d=\"M0 5l-4.6 -8h9.2z\"/>"
    print "</g>"
}
function draw_frame(   i) {
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n", left + width + right, top + height + 64
    print "<title>Reward of prompts not learned from against KL divergence from the base, by method</title>"
    print "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#e6f3e6\"/>\n", x_of(0), y_of(1), x_of(10) - x_of(0), y_of(0.9) - y_of(1)
    text(x_of(0) + 6, y_of(0.9) - 6, "start", "goal: 90 % within 10 nats", " fill=\"#5a7a5a\"")
    for (i = 0; i <= 10; i += 2) {
        printf "<path d=\"M%.1f %.1fh%.1f\" stroke=\"#ddd\"/>\n", left, y_of(i / 10), width
        text(left - 8, y_of(i / 10) + 4, "end", 10 * i " %", "")
    }
    for (i = 0; i <= most; i += 2) {
        printf "<path d=\"M%.1f %.1fv5\" stroke=\"#888\"/>\n", x_of(i), y_of(0)
        text(x_of(i), y_of(0) + 20, "middle", i, "")
    }
    printf "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#888\"/>\n", left, y_of(1), y_of(0), left + width
    text(left + width / 2, y_of(0) + 40, "middle", "KL(policy ‖ base) of an answer, nats", "")
    text(left, top - 14, "start", "answers with the wanted word" (answers ? "; lines: " answers " to validation prompts, large: " final_answers " to final ones, 95 %" : ""), "")
}
function draw_bound(   p, path) {
    for (p = base; p < 1; p += 0.01) path = path sprintf("%s%.1f %.1f", path == "" ? "M" : "L", x_of(bound(p)), y_of(p))
    path = path sprintf("L%.1f %.1f", x_of(bound(1)), y_of(1))
    printf "<path d=\"%s\" fill=\"none\" stroke=\"#999\" stroke-dasharray=\"5 4\"/>\n", path
    printf "<path d=\"M%.1f %.1fh22\" stroke=\"#999\" stroke-dasharray=\"5 4\"/>\n", left + width + 16, top + 10
    text(left + width + 46, top + 14, "start", "the optimum", "")
}
function draw_method(m,   i, path, y) {
    for (i = 1; i <= n[m]; i++) path = path sprintf("%s%.1f %.1f", i == 1 ? "M" : "L", x_of(kl[m, i]), y_of(reward[m, i]))
    printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" stroke-opacity=\"0.45\"/>\n", path, colour[m]
    for (i = 1; i <= n[m]; i++) mark(m - 1, x_of(kl[m, i]), y_of(reward[m, i]), colour[m], 0.6)
    y = top + 10 + 22 * m
    printf "<path d=\"M%.1f %.1fh22\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", left + width + 16, y, colour[m]
    mark(m - 1, left + width + 27, y, colour[m], 1)
    text(left + width + 46, y + 4, "start", title[m], "")
}
function draw_final(m,   high) {
    if (!(m in final_reward)) return
    high = final_reward[m] + interval * final_error[m]
    printf "<path d=\"M%.1f %.1fV%.1fM%.1f %.1fH%.1f\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", x_of(final_kl[m]), y_of(final_reward[m] - interval * final_error[m]), y_of(high > 1 ? 1 : high), x_of(final_kl[m] - interval * final_kl_error[m]), y_of(final_reward[m]), x_of(final_kl[m] + interval * final_kl_error[m]), colour[m]
    mark(m - 1, x_of(final_kl[m]), y_of(final_reward[m]), colour[m], 1.4)
}
function draw(   m) {
    left = 56; top = 40; width = 520; height = 340; right = 160; most = 14
    draw_frame()
    draw_bound()
    for (m = 1; m <= methods; m++) draw_method(m)
    for (m = 1; m <= methods; m++) draw_final(m)
    print "</svg>"
}

# KL where a method first has this reward; between two points of its training, in proportion.
function first_at(m, wanted,   i, share) {
    for (i = 1; i <= n[m]; i++) {
        if (reward[m, i] < wanted) continue
        if (i == 1) return kl[m, 1]
        share = (wanted - reward[m, i - 1]) / (reward[m, i] - reward[m, i - 1])
        return kl[m, i - 1] + share * (kl[m, i] - kl[m, i - 1])
    }
    return -1
}
function cell_of(x) { return x < 0 ? sprintf("%8s", "-") : sprintf("%8.2f", x) }
function print_table(   m, w, line, level) {
    split("0.5 0.75 0.9", level, " ")
    print "KL (nats) at which the validation reward first is   50 %    75 %    90 %   the chosen one, final prompts (95 %)"
    for (m = 0; m <= methods; m++) {
        line = sprintf("  %-44s", m ? title[m] : "the optimum")
        for (w = 1; w <= 3; w++) line = line cell_of(m ? first_at(m, level[w]) : bound(level[w]))
        if (m in final_reward) line = line sprintf("   %.1f ± %.1f %% at %.2f ± %.2f", 100 * final_reward[m], 100 * interval * final_error[m], final_kl[m], interval * final_kl_error[m])
        print line
    }
}
function print_chart(   m, i, x, y, cell, line, letter) {
    for (m = 1; m <= methods; m++) for (i = 1; i <= n[m]; i++) {
        x = int(kl[m, i] * 4 + 0.5); y = int(reward[m, i] * 20 + 0.5); if (x > 60) x = 60
        letter = letter_of[m]
        cell[y, x] = cell[y, x] == "" || cell[y, x] == letter ? letter : "*"
    }
    print "reward of validation prompts against KL (nats); *: several"
    for (y = 20; y >= 0; y--) {
        line = ""
        for (x = 0; x <= 60; x++) line = line (cell[y, x] != "" ? cell[y, x] : base < y / 20 && int(bound(y / 20) * 4 + 0.5) == x ? "." : " ")
        printf "%4d %% |%s\n", 5 * y, line
    }
    print "       +-------------------------------------------------------------"
    print "        0       2       4       6       8       10      12      14"
    line = ""
    for (m = 1; m <= methods; m++) line = line letter_of[m] ": " title[m] "  "
    print "        " line ".: the optimum"
}

BEGIN {
    interval = 1.96 # standard errors
    split("#0072b2 #d55e00 #009e73 #cc79a7 #b8860b", colour, " ")
    split("dpo D rejection S rloo R grpo G ppo P", pairs, " "); for (i = 1; i in pairs; i += 2) letters[pairs[i]] = pairs[i + 1]
    names["dpo"] = "DPO"; names["rejection"] = "rejection sampling"; names["rloo"] = "RLOO"; names["grpo"] = "GRPO"; names["ppo"] = "PPO"
}
!($1 in number) { number[$1] = ++methods; title[methods] = $1 in names ? names[$1] : $1; letter_of[methods] = $1 in letters ? letters[$1] : methods % 10 }
$7 == "final" { m = number[$1]; final_reward[m] = $3; final_error[m] = $4; final_kl[m] = $5; final_kl_error[m] = $6; next }
{ m = number[$1]; i = ++n[m]; step[m, i] = $2; reward[m, i] = $3; reward_error[m, i] = $4; kl[m, i] = $5; kl_error[m, i] = $6 }
END { if (table) { print_table(); print_chart() } else draw() }
