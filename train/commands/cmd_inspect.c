/* cria inspect PATH: what is in a checkpoint, run, model or tokenizer; its checksums are verified. */
#include <stdio.h>
#include <stdlib.h>

#include "model/core/error.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/inspect.h"

int command_inspect(int argc, char **argv) {
    bool json = false, brief = false;
    const Flag flags[] = {
        {"json", 0, FLAG_SWITCH, &json, "", "", "print one JSON object"},
        {"brief", 'b', FLAG_SWITCH, &brief, "", "", "leave single arrays out"},
    };
    CliResult cli;
    TRY(cli_parse(
        &cli,
        &(CliSpec){.usage = "PATH [flags]",
                   .about =
                       "Shows what is in PATH: a checkpoint or a run's folder (every file's CRC32C is verified), a\n"
                       "Hugging Face directory, a safetensors or llama2.c file, a config.json, or a tokenizer.\n"
                       "Ends with status 3 when something in it is damaged or cannot be used.",
                   .flags = flags,
                   .n_flags = sizeof flags / sizeof *flags,
                   .min_words = 1,
                   .max_words = 1},
        argc, argv));
    if (cli.helped) return OK;
    json_t *report;
    TRY(inspect_path(&report, cli.words[0]));
    if (json) {
        json_dumpf(report, stdout, JSON_INDENT(2));
        putchar('\n');
    } else {
        inspect_print(report, brief);
    }
    const char *problem = json_string_value(json_object_get(report, "problem"));
    int rc = problem ? error_set(ERR_REFUSED, __FILE__, __LINE__, "%s", problem) : OK;
    json_decref(report);
    return rc;
}
