/* GGUF, the format of llama.cpp, Ollama and LM Studio (ggml's docs/gguf.md):
 *
 *   "GGUF", u32 version, u64 number of tensors, u64 number of metadata values
 *   metadata   text key, u32 type, value; a text is u64 length and bytes; an array u32 type, u64 number, items
 *   tensors    text name, u32 number of dimensions, u64 dimensions (fastest first), u32 type, u64 offset
 *   padding to general.alignment (32), then the tensors, each at a multiple of it; all little-endian
 *
 * A Llama's tensors are token_embd, blk.N.attn_q …, output_norm, output (absent: tied). llama.cpp rotates neighbouring
 * pairs of a head's channels, transformers a head's two halves, so the rows of attn_q and attn_k are in another order:
 * row 2i of a head is transformers' row i, row 2i + 1 its row head_dim/2 + i. Llama 3.1's scaling of the rotary
 * frequencies is the tensor rope_freqs [head_dim/2]: by what each frequency is divided. */
#ifndef CRIA_FORMATS_GGUF_H
#define CRIA_FORMATS_GGUF_H

#include "data/tokenizer/tokenizer.h"
#include "model/formats/ggml_blocks.h"
#include "model/formats/hf_config.h"
#include "model/formats/named.h"

/* The text (named_text) that holds the chat template. */
#define GGUF_TEMPLATE "tokenizer.chat_template"

/* The file begins like one, whatever it is called. */
bool gguf_recognises(const char *path);

/* Opens a Llama under Hugging Face's names, rows in transformers' order. F32, F16 and BF16 are read as they are, Q8_0
 * and Q4_0 as fp32; other types are listed with dtype DTYPE_COUNT. The metadata's scalars are its texts. A file with
 * only a vocabulary is one without arrays. */
int gguf_open(NamedFile **file, const char *path);

/* ---- of a file that gguf_open opened ---- */

/* The shape; BOS, and the ids that end a text (eos, eot, eom). */
const HfConfig *gguf_config(const NamedFile *file);
/* Refuses, naming the tensor and its type, a file with types that cannot be read. */
int gguf_check_readable(const NamedFile *file);
/* NULL where the file has none. */
int gguf_tokenizer(Tokenizer **tokenizer, const NamedFile *file);

/* ---- writing ---- */

typedef struct {
    const char *name; /* general.name */
    GgmlType type;    /* of the matrices: F32, F16, BF16, Q8_0, Q4_0 */
    const HfConfig *config;
    const HfGeneration *generation; /* what ends a text */
    const Tokenizer *tokenizer;     /* NULL: none inside; llama.cpp then takes ids only */
    const char *chat_template;      /* Jinja, or NULL */
} GgufModel;

/* Writes one file, complete or not at all. `sources` are a Llama's parameters under Hugging Face's names, each given by
 * `fill` or as fp32. Norms are written in F32, matrices whose rows are no whole blocks in F16. */
int gguf_write(const char *path, const NamedSource *sources, size_t n, const GgufModel *model);

#endif
