/* logits MODEL OUT.safetensors [--adapter DIR [--save DIR]] ID …: the model's logits [T, V] over one sequence, as a
 * safetensors file, for check_export.py --expected and check_peft.py; with an adapter of PEFT's, which --save writes
 * anew. Build it with `make build/tests/peers/logits`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/threads.h"
#include "model/core/file.h"
#include "model/formats/safetensors.h"
#include "model/lora_peft.h"
#include "train/files/model_file.h"

enum { LONGEST = 4096 };

static int compute(Llama *model, const int32_t *ids, int n, const char *path) {
    int32_t positions[LONGEST], starts[2] = {0, n};
    for (int i = 0; i < n; i++) positions[i] = i;
    Tape *tape = tape_new(&(TapeOptions){.capacity = n});
    if (!tape) FAIL(ERR_FAILED, "out of memory");
    Tensor *logits = op_linear(tape, llama_hidden(tape, model, (LlamaRecord){0}), &model->head);
    tape_keep(logits);
    int rc = tape_plan(tape);
    TapeBatch batch = {.n_tokens = n, .n_segments = 1, .tokens = ids, .positions = positions, .segment_start = starts};
    if (rc == OK) rc = tape_bind(tape, 0, &batch);
    if (rc == OK) rc = tape_forward(tape, 0);
    if (rc == OK) {
        NamedSource source = {.array = {.name = "logits", .n_dims = 2, .dims = {n, model->shape.vocab_size}},
                              .f32 = tape_value(tape, 0, logits)};
        rc = safetensors_write(path, &source, 1, NULL, 0);
    }
    tape_free(tape);
    return rc;
}

int main(int argc, char **argv) {
    ModelFile file;
    int32_t ids[LONGEST];
    const char *adapter = NULL, *save = NULL;
    int n = 0;
    for (int i = 3; i < argc && n < LONGEST; i++)
        if (strcmp(argv[i], "--adapter") == 0 && i + 1 < argc)
            adapter = argv[++i];
        else if (strcmp(argv[i], "--save") == 0 && i + 1 < argc)
            save = argv[++i];
        else
            ids[n++] = (int32_t)strtol(argv[i], NULL, 10);
    if (n == 0)
        return fprintf(stderr, "usage: logits MODEL OUT.safetensors [--adapter DIR [--save DIR]] ID ...\n"), ERR_USAGE;
    threads_init(0);
    int rc = kernels_select("auto");
    if (rc == OK && adapter)
        rc = model_file_open(&file, adapter, (ModelFileOptions){.base = argv[1]});
    else if (rc == OK)
        rc = model_file_open(&file, argv[1], (ModelFileOptions){0});
    if (rc == OK) {
        rc = compute(file.model, ids, n, argv[2]);
        if (rc == OK && adapter && save) rc = directory_make(save);
        if (rc == OK && adapter && save) rc = lora_copy_peft(&file.adapter, save);
        model_file_close(&file);
    }
    if (rc != OK) fprintf(stderr, "error: %s\n", error_text());
    return rc;
}
