/* The templates by name. Their texts, and where they come from:
 *
 *   llama2    llama/generation.py of Meta's reference code: the system message in << >>, every pair of turns begun with
 *             BOS and ended with EOS
 *   llama3*   the model cards' prompt formats: a header with the role, two newlines, the text, <|eot_id|>; 3.1 and 3.2
 *             always have a system message, which begins with the dates
 *   alpaca    the `text` column of tatsu-lab/alpaca; a system message takes the place of the preamble
 *   chatml    OpenAI's ChatML
 *   plain     texts one after the other; an answer ends with EOS */
#include "data/chat/template.h"

#include <string.h>

#define LLAMA3_BEFORE(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3_AFTER "<|eot_id|>"
#define LLAMA31_DATES "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\n"
#define CHATML_BEFORE(role) "<|im_start|>" role "\n"
#define CHATML_AFTER "<|im_end|>\n"
#define ALPACA_END "Write a response that appropriately completes the request."

static const ChatTemplateSpec specs[] = {
    {.name = "llama2",
     .begin = "",
     .role = {[CHAT_SYSTEM] = {"<<SYS>>\n", "\n<</SYS>>\n\n", NULL},
              [CHAT_USER] = {"{bos}[INST] ", " [/INST]", NULL},
              [CHAT_ASSISTANT] = {" ", " {eos}", "{eos}"}},
     .trim = true,
     .system_in_user = true},
    {.name = "llama3",
     .begin = "<|begin_of_text|>",
     .role = {[CHAT_SYSTEM] = {LLAMA3_BEFORE("system"), LLAMA3_AFTER, NULL},
              [CHAT_USER] = {LLAMA3_BEFORE("user"), LLAMA3_AFTER, NULL},
              [CHAT_ASSISTANT] = {LLAMA3_BEFORE("assistant"), LLAMA3_AFTER, LLAMA3_AFTER}},
     .trim = true},
    {.name = "llama3.1",
     .begin = "<|begin_of_text|>",
     .role = {[CHAT_SYSTEM] = {LLAMA3_BEFORE("system") "{environment}" LLAMA31_DATES, LLAMA3_AFTER, NULL},
              [CHAT_USER] = {LLAMA3_BEFORE("user"), LLAMA3_AFTER, NULL},
              [CHAT_ASSISTANT] = {LLAMA3_BEFORE("assistant"), LLAMA3_AFTER, LLAMA3_AFTER},
              [CHAT_TOOL] = {LLAMA3_BEFORE("ipython"), LLAMA3_AFTER, NULL}},
     .trim = true,
     .always_system = true,
     .tool_json = true,
     .tool_calls = true,
     .call_tag = "<|python_tag|>",
     .call_stop = "<|eom_id|>"},
    {.name = "llama3.2",
     .begin = "<|begin_of_text|>",
     .role = {[CHAT_SYSTEM] = {LLAMA3_BEFORE("system") LLAMA31_DATES, LLAMA3_AFTER, NULL},
              [CHAT_USER] = {LLAMA3_BEFORE("user"), LLAMA3_AFTER, NULL},
              [CHAT_ASSISTANT] = {LLAMA3_BEFORE("assistant"), LLAMA3_AFTER, LLAMA3_AFTER},
              [CHAT_TOOL] = {LLAMA3_BEFORE("ipython"), LLAMA3_AFTER, NULL}},
     .trim = true,
     .always_system = true,
     .tool_json = true,
     .tool_calls = true},
    {.name = "alpaca",
     .begin = "{bos}",
     .role = {[CHAT_SYSTEM] = {"", "\n\n", NULL},
              [CHAT_USER] = {"### Instruction:\n", "\n\n", NULL},
              [CHAT_ASSISTANT] = {"### Response:\n", "{eos}", "{eos}"}},
     .trim = true,
     .default_system = "Below is an instruction that describes a task. " ALPACA_END,
     .default_system_input = "Below is an instruction that describes a task, paired with an input that provides "
                             "further context. " ALPACA_END,
     .input_before = "\n\n### Input:\n"},
    {.name = "chatml",
     .begin = "",
     .role = {[CHAT_SYSTEM] = {CHATML_BEFORE("system"), CHATML_AFTER, NULL},
              [CHAT_USER] = {CHATML_BEFORE("user"), CHATML_AFTER, NULL},
              [CHAT_ASSISTANT] = {CHATML_BEFORE("assistant"), CHATML_AFTER, "<|im_end|>"},
              [CHAT_TOOL] = {CHATML_BEFORE("tool"), CHATML_AFTER, NULL}},
     .trim = true},
    {.name = "plain",
     .begin = "{bos}",
     .role = {[CHAT_SYSTEM] = {"", "", NULL}, [CHAT_USER] = {"", "", NULL}, [CHAT_ASSISTANT] = {"", "{eos}", "{eos}"}}},
};
enum { N_SPECS = sizeof specs / sizeof *specs };

const ChatTemplateSpec *chat_template_spec(const char *name) {
    for (size_t i = 0; i < N_SPECS; i++)
        if (strcmp(specs[i].name, name) == 0) return &specs[i];
    return NULL;
}

const char *const *chat_template_names(size_t *n) {
    static const char *const names[N_SPECS] = {"llama2", "llama3", "llama3.1", "llama3.2", "alpaca", "chatml", "plain"};
    *n = N_SPECS;
    return names;
}
