/* cria import: any model becomes a folder like a run's, with one checkpoint: TO/checkpoints/step-0. It has everything
 * but an optimizer's state, and serves wherever a MODEL is asked for. */
#include "model/core/error.h"
#include "model/formats/checkpoint.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/model_copy.h"
#include "train/new_directory.h"

static int write_checkpoint(ModelCopy *copy, const char *run) {
    NamedText *texts;
    NamedArray tokenizer = {0};
    CheckpointWriter *writer;
    size_t n_texts;
    const ModelFile *file = &copy->file;
    const char *resolved = named_text(file->arrays, MODEL_FILE_YAML); /* of the run that made it */
    TRY(model_file_describe(&file->config, file->tokenizer, &file->generation, resolved, &copy->arena, &texts, &n_texts,
                            &tokenizer));
    copy->sources[copy->n] = (NamedSource){.array = tokenizer};
    TRY(checkpoint_begin(&writer, run, 0));
    int rc = checkpoint_add_arrays(writer, CHECKPOINT_MODEL, copy->sources, copy->n + 1, texts, n_texts);
    if (rc != OK) {
        checkpoint_abandon(writer);
        return rc;
    }
    return checkpoint_commit(writer);
}

static int import_model(ModelCopy *copy, const char *to) {
    NewDirectory directory;
    TRY(new_directory_begin(&directory, to));
    model_copy_begin(copy, "importing");
    int rc = write_checkpoint(copy, directory.path);
    model_copy_end(copy);
    if (rc == OK) rc = new_directory_commit(&directory);
    new_directory_abandon(&directory);
    return rc;
}

int command_import(int argc, char **argv) {
    ModelCopyOptions options = {.need_tokenizer = true};
    const Flag flags[] = {
        {"tokenizer", 't', FLAG_TEXT, &options.tokenizer, "FILE", "", "instead of the model's own"},
        {"dtype", 0, FLAG_TEXT, &options.dtype, "DTYPE", "", "fp32, bf16 or fp16 (default: as they are stored)"},
    };
    CliSpec spec = {.usage = "FROM TO [flags]",
                    .about =
                        "Makes a checkpoint of a model: a folder TO, new or empty, that serves wherever a MODEL is\n"
                        "asked for (pretrain model.base=TO, generate TO, export TO …). FROM: a Hugging Face\n"
                        "directory, a llama2.c file (with --tokenizer), a checkpoint, a run's folder.",
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
    int rc = import_model(&copy, cli.words[1]);
    if (rc == OK) model_copy_report(&copy, "imported", cli.words[1]);
    model_copy_close(&copy);
    return rc;
}
