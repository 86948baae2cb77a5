/* cria sft: a model learns from instructions. The data are conversations, rendered with a chat template; the loss is
 * the negative log-likelihood of what the template says is learned, over the sum of the step's weights. */
#include <stdlib.h>

#include "data/chat/encode.h"
#include "model/core/error.h"
#include "train/chat_stage.h"
#include "train/commands.h"

static void free_own(Run *run) {
    if (run->own) chat_stage_free(run->own);
    free(run->own);
}

static void about(Text *out) {
    text_puts(out, "Fine-tunes model.base on instructions (data.train: JSONL or JSON arrays of messages,\n"
                   "conversations, instruction and output, prompt and completion, or text), rendered with a chat\n"
                   "template. The same command on the same output resumes.");
}

static int prepare(Run *run) {
    run->own = calloc(1, sizeof(ChatStage));
    if (!run->own) FAIL(ERR_FAILED, "out of memory");
    run->stops_masked = run->config->sft_mask_stop;
    return chat_stage_prepare(run);
}

static int make_encoder(const RecordEncoder **encoder, Run *run, const ConfigSource *source,
                        const ChatColumns *columns) {
    (void)source;
    const ChatStage *stage = run->own;
    const Config *config = run->config;
    ChatEncoder *chat;
    ARENA_TRY(chat, &run->arena, 1);
    chat_encoder_init(chat, &(ChatEncoderOptions){.chat = stage->model_template.chat,
                                                  .columns = columns,
                                                  .train_on = (TrainOn)config->sft_train_on,
                                                  .context = (size_t)config->train_context,
                                                  .overlong = (Overlong)config->sft_overlong,
                                                  .mask_stop = config->sft_mask_stop});
    *encoder = &chat->base;
    return OK;
}

static int data(Run *run, LoaderOptions *options) {
    return chat_stage_data(run, options, make_encoder);
}

static int objective(Objective **out, Run *run, int capacity) {
    (void)run;
    return sft_objective_new(out, capacity);
}

const Stage stage_sft = {
    .name = "sft",
    .about = about,
    .sections = "output seed precision model tokenizer data template lora sft optim train generate parallel",
    .defaults = chat_stage_defaults,
    .prepare = prepare,
    .new_rows = chat_stage_new_rows,
    .data = data,
    .data_opened = chat_stage_data_opened,
    .objective = objective,
    .sample = chat_stage_sample,
    .free = free_own};

int command_sft(int argc, char **argv) {
    return run_command(&stage_sft, argc, argv);
}
