/* cria data lint, cria data show. */
#include "train/commands/cmd_data.h"

#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "train/commands.h"

int command_data(int argc, char **argv) {
    static const char help[] =
        "usage: cria data lint TOKENIZER|MODEL FILE... --template NAME [flags]   check instruction records\n"
        "       cria data show TOKENIZER|MODEL FILE... --template NAME [flags]   see what of them is learned\n\n"
        "'cria data lint --help' and 'cria data show --help' explain the flags.\n";
    static const struct {
        const char *verb, *name;
        int (*run)(int argc, char **argv);
    } verbs[] = {{"lint", "data lint", data_lint_command}, {"show", "data show", data_show_command}};
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(help, stdout);
        return OK;
    }
    for (size_t i = 0; argc > 1 && i < sizeof verbs / sizeof *verbs; i++) {
        if (strcmp(argv[1], verbs[i].verb) != 0) continue;
        char name[16];
        snprintf(name, sizeof name, "%s", verbs[i].name);
        argv[1] = name;
        return verbs[i].run(argc - 1, argv + 1);
    }
    FAIL(ERR_USAGE, "cria data: expected 'lint' or 'show'%s%s", argc > 1 ? ", found " : "", argc > 1 ? argv[1] : "");
}
