/* cria import: any model becomes a folder like a run's, with one checkpoint: TO/checkpoints/step-0. It has everything
 * but an optimizer's state, and serves wherever a MODEL is asked for. */
#include "model/core/error.h"
#include "train/console/cli.h"
#include "train/commands.h"
#include "train/files/model_copy.h"
#include "train/files/model_write.h"
#include "train/console/new_directory.h"

int command_import(int argc, char **argv) {
    ModelCopyOptions options = {.need_tokenizer = true, .adapter = true};
    const Flag flags[] = {
        {"tokenizer", 't', FLAG_TEXT, &options.tokenizer, "FILE", "", "instead of the model's own"},
        {"base", 0, FLAG_TEXT, &options.base, "MODEL", "", MODEL_FILE_BASE_HELP},
        {"dtype", 0, FLAG_TEXT, &options.dtype, "DTYPE", "", "fp32, bf16 or fp16 (default: as they are stored)"},
    };
    CliSpec spec = {.usage = "FROM TO [flags]",
                    .about =
                        "Makes a checkpoint of a model: a folder TO, new or empty, that serves wherever a MODEL is\n"
                        "asked for (pretrain model.base=TO, generate TO, export TO …). FROM: a Hugging Face\n"
                        "directory, a GGUF file, a llama2.c file (with --tokenizer), a checkpoint, a run's folder;\n"
                        "an adapter (PEFT's folder) stays one, apart from its base.",
                    .flags = flags,
                    .n_flags = sizeof flags / sizeof *flags,
                    .min_words = 2,
                    .max_words = 2};
    CliResult cli;
    ModelCopy copy;
    TRY(cli_parse(&cli, &spec, argc, argv));
    if (cli.helped) return OK;
    TRY(new_directory_check(cli.words[1]));
    TRY(model_copy_open(&copy, cli.words[0], options));
    int rc = model_copy_write(&copy, cli.words[1], "import",
                              copy.file.lora ? model_write_adapter : model_write_checkpoint, NULL);
    model_copy_close(&copy);
    return rc;
}
