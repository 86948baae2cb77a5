/* Templates that travel with a model. What cria writes as Jinja begins with a comment that holds the template itself:
 *
 *   {#- cria {"name": "chatml", "begin": "", "roles": {…}, …} -#}
 *
 * so that it can be read again from a checkpoint, a Hugging Face directory or a GGUF file; the Jinja after it must be
 * the one that the template gives, or somebody has changed it. Of other texts a few are known by their hash. */
#ifndef CRIA_DATA_CHAT_SAVED_H
#define CRIA_DATA_CHAT_SAVED_H

#include <jansson.h>

#include "data/chat/template.h"

typedef struct {
    ChatTemplateSpec spec;
    ChatTemplateOptions options;
    json_t *root; /* what the texts point into; NULL: into the program */
} SavedTemplate;  /* {0} is empty; saved_template_free */
void saved_template_free(SavedTemplate *saved);

/* The Jinja text with its comment. */
int chat_template_save(const ChatTemplate *chat, Text *out);

/* What `jinja` means; *found is false where it is not known. The tokenizer must have the template's tokens. */
int saved_template_read(SavedTemplate *saved, bool *found, const char *jinja, const Tokenizer *tokenizer);

/* The special tokens that a template needs and the tokenizer lacks: those of its texts that are written <|…|>, and of
 * `extra`. An array of names, and in it `n`; free with names_free (model/core/file.h). */
int chat_spec_missing(const ChatTemplateSpec *spec, const char *const *extra, size_t n_extra,
                      const Tokenizer *tokenizer, char ***names, size_t *n);

#endif
