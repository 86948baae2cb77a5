/* cria data lint, cria data show. */
#include "train/commands/cmd_data.h"

#include "train/commands.h"
#include "train/console/cli.h"

int command_data(int argc, char **argv) {
    static const char help[] =
        "usage: cria data lint TOKENIZER|MODEL FILE... --template NAME [flags]   check instruction records\n"
        "       cria data show TOKENIZER|MODEL FILE... --template NAME [flags]   see what of them is learned\n\n"
        "'cria data lint --help' and 'cria data show --help' explain the flags.\n";
    static const CliVerb verbs[] = {{"lint", data_lint_command}, {"show", data_show_command}};
    return cli_run_verb(verbs, sizeof verbs / sizeof *verbs, help, argc, argv);
}
