/* See answer_logps.h. */
#include "train/objectives/answer_logps.h"

#include "model/core/error.h"

AnswerLogps answer_logps_record(Tape *tape, Llama *model, LlamaRecord record, bool metrics) {
    AnswerLogps r = {.weights = tape_input(tape, ROWS_TOKENS, 1, DTYPE_F32, false)};
    r.head = llama_record(tape, model, record,
                          (HeadOptions){.mask = r.weights, .entropy = metrics, .top1 = metrics, .mean_logit = metrics});
    r.logps = op_segment_sum(tape, op_mul(tape, r.head.logprob, r.weights));
    if (!r.logps) return r; /* a recording error is tape_plan's to tell */
    tape_keep(r.logps);
    if (!metrics) return r;
    tape_keep(r.head.entropy);
    tape_keep(r.head.top1);
    tape_keep(r.head.mean_logit);
    return r;
}

int answer_logps_bind(const AnswerLogps *recorded, Tape *tape, int buffer, const MicroBatch *micro,
                      const MicroBuffers *buffers) {
    TRY(micro_batch_bind(tape, buffer, micro, buffers));
    tape_bind_input(buffer, recorded->weights, micro->weights);
    return OK;
}

int answer_graphs_record(AnswerGraphs *graphs, Tape *tape, Llama *model, LlamaRecord record, bool training) {
    AnswerLogps *r = &graphs->graph[training];
    *r = answer_logps_record(tape, model, record, true);
    if (!training || !r->logps) return OK;
    graphs->gradient = tape_input(tape, ROWS_SEGMENTS, 1, DTYPE_F32, false);
    tape_seed(tape, r->logps, graphs->gradient);
    return OK;
}

int answer_graphs_bind(const AnswerGraphs *graphs, Tape *tape, int buffer, const MicroBatch *micro, bool training) {
    TRY(answer_logps_bind(&graphs->graph[training], tape, buffer, micro, &graphs->buffers));
    if (training) tape_bind_input(buffer, graphs->gradient, graphs->buffers.gradient);
    return OK;
}

AnswerSums answer_sums(const AnswerLogps *recorded, Tape *tape, int buffer, const MicroBatch *micro, int segment) {
    const float *logps = tape_value(tape, buffer, recorded->logps);
    const float *entropy = tape_value(tape, buffer, recorded->head.entropy);
    const float *mean_logit = tape_value(tape, buffer, recorded->head.mean_logit);
    const int32_t *top1 = tape_value(tape, buffer, recorded->head.top1);
    AnswerSums sums = {.logp = (double)logps[segment]};
    for (int t = micro->segment_start[segment]; t < micro->segment_start[segment + 1]; t++) {
        if (!(micro->weights[t] > 0)) continue;
        sums.length += (double)micro->weights[t];
        sums.logits += (double)mean_logit[t];
        sums.entropy += (double)entropy[t];
        sums.n += 1;
        sums.correct += top1[t] == micro->targets[t];
    }
    return sums;
}
