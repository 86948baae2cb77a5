/* train/console/cli.h: words, flags and options of a command. */
#include <string.h>

#include "tests/check_main.h"
#include "train/console/cli.h"
#include "train/commands.h"

typedef struct {
    bool json;
    int64_t count;
    double ratio;
    const char *prompt;
} Values;

enum { MOST = 16 };

/* Parses "a b c" as the arguments of a command `test`, with every kind of flag; the config may be NULL. */
static int parse(const char *line, Values *values, Config *config, CliResult *result, bool config_file) {
    static char copy[512], *argv[MOST + 1];
    int argc = 0;
    *values = (Values){.count = 7, .prompt = ""};
    snprintf(copy, sizeof copy, "test %s", line);
    for (char *word = strtok(copy, " "); word && argc < MOST; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    const Flag flags[] = {
        {"json", 'j', FLAG_SWITCH, &values->json, "", "", "print JSON"},
        {"count", 0, FLAG_INT, &values->count, "N", ">= 1", "how many"},
        {"ratio", 'r', FLAG_REAL, &values->ratio, "X", "", "a ratio"},
        {"prompt", 'p', FLAG_TEXT, &values->prompt, "TEXT", "", "what it begins with"},
        {"max-new-tokens", 'n', FLAG_OPTION, NULL, "N", "", "longest continuation"},
    };
    return cli_parse(result,
                     &(CliSpec){.usage = "FROM [TO] [flags]",
                                .about = "For tests.",
                                .flags = flags,
                                .n_flags = sizeof flags / sizeof *flags,
                                .min_words = 1,
                                .max_words = 2,
                                .config = config,
                                .config_file = config_file,
                                .section = "generate"},
                     argc, argv);
}

START_TEST(words_and_flags_may_come_in_any_order) {
    Values values;
    CliResult result;
    CHECK_OK(parse("a --count 3 -j -r 0.5 b --prompt=x=y", &values, NULL, &result, false));
    ck_assert(values.json && values.count == 3 && values.ratio == 0.5 && !result.helped);
    ck_assert_str_eq(values.prompt, "x=y");
    ck_assert_int_eq(result.n_words, 2);
    ck_assert_str_eq(result.words[0], "a");
    ck_assert_str_eq(result.words[1], "b");
    CHECK_OK(parse("-p -x -- -a --b", &values, NULL, &result, false));
    ck_assert_str_eq(values.prompt, "-x"); /* a value may begin with a dash */
    ck_assert_str_eq(result.words[1], "--b");
    CHECK_OK(parse("- k=v", &values, NULL, &result, false)); /* without a config, = means nothing */
    ck_assert(result.n_words == 2 && values.count == 7);
}
END_TEST

START_TEST(wrong_arguments_are_named) {
    Values values;
    CliResult result;
    CHECK_ERROR(parse("", &values, NULL, &result, false), ERR_USAGE,
                "something is missing; usage: cria test FROM [TO]");
    CHECK_ERROR(parse("a b c", &values, NULL, &result, false), ERR_USAGE, "what is 'c'?");
    CHECK_ERROR(parse("a --cuont 3", &values, NULL, &result, false), ERR_USAGE, "did you mean '--count'?");
    CHECK_ERROR(parse("a -z", &values, NULL, &result, false), ERR_USAGE, "there is no flag '-z'");
    CHECK_ERROR(parse("a --count", &values, NULL, &result, false), ERR_USAGE, "--count needs a value: N");
    CHECK_ERROR(parse("a --count x", &values, NULL, &result, false), ERR_USAGE, "--count: found 'x', expected a whole");
    CHECK_ERROR(parse("a --count 0", &values, NULL, &result, false), ERR_USAGE, "--count: found '0'");
    CHECK_ERROR(parse("a --ratio=nan", &values, NULL, &result, false), ERR_USAGE, "--ratio: found 'nan'");
    CHECK_ERROR(parse("a --json=1", &values, NULL, &result, false), ERR_USAGE, "takes no value");
    CHECK_ERROR(parse("a --top-k 5", &values, NULL, &result, false), ERR_USAGE, "no flag '--top-k'"); /* no config */
}
END_TEST

START_TEST(flags_stand_for_the_options_of_a_section) {
    Values values;
    CliResult result;
    Config *config;
    CHECK_OK(config_new(&config));
    CHECK_OK(parse("a --top-k 5 --temperature=0 -n 9 --seed 3 optim.lr=0.5", &values, config, &result, false));
    ck_assert(config->generate_top_k == 5 && config->generate_temperature == 0.0 && config->optim_lr == 0.5);
    ck_assert(config->generate_max_new_tokens == 9 && config->generate_seed == 3 && config->seed == 1);
    ck_assert_int_eq(result.n_words, 1);
    ck_assert_str_eq(config_where(config, OPTION_generate_top_k), "--top-k");
    ck_assert_str_eq(config_where(config, OPTION_optim_lr), "argument 10 (optim.lr=0.5)");
    CHECK_ERROR(parse("a --top-k x", &values, config, &result, false), ERR_USAGE, "--top-k: generate.top_k: found 'x'");
    CHECK_ERROR(parse("a --temprature 1", &values, config, &result, false), ERR_USAGE, "did you mean '--temperature'?");
    CHECK_ERROR(parse("a optim.lrr=1", &values, config, &result, false), ERR_USAGE, "argument 3 (optim.lrr=1)");
    config_free(config);
}
END_TEST

START_TEST(arguments_win_over_the_config_file_wherever_they_stand) {
    Values values;
    CliResult result;
    Config *config;
    CHECK_OK(config_new(&config));
    CHECK_OK(parse("optim.lr=0.5 configs/tiny_shakespeare_bytes.yaml train.steps=3 train.steps=4", &values, config,
                   &result, true));
    ck_assert(config->optim_lr == 0.5 && config->train_steps == 4 && config->model_dim == 128);
    CHECK_ERROR(parse("nothing.yaml", &values, config, &result, true), ERR_USAGE, "nothing.yaml");
    config_free(config);
}
END_TEST

START_TEST(commands_are_found_by_name_or_suggested) {
    size_t n;
    const Command *table = command_table(&n), *command;
    for (size_t i = 0; i < n; i++) {
        CHECK_OK(command_find(&command, table[i].name));
        ck_assert_ptr_eq(command, &table[i]);
        ck_assert(*table[i].help && strlen(table[i].help) < 100);
        for (size_t j = 0; j < i; j++) ck_assert_str_ne(table[i].name, table[j].name);
    }
    CHECK_ERROR(command_find(&command, "hlep"), ERR_USAGE, "did you mean 'help'?");
    CHECK_ERROR(command_find(&command, "qqqqqqqqqqqqqqq"), ERR_USAGE, "'cria help' lists them");
}
END_TEST

CHECK_MAIN("cli", words_and_flags_may_come_in_any_order, wrong_arguments_are_named,
           flags_stand_for_the_options_of_a_section, arguments_win_over_the_config_file_wherever_they_stand,
           commands_are_found_by_name_or_suggested)
