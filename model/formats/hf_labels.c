/* Names of a score head's rows: see hf_config.h. */
#include <stdio.h>
#include <string.h>

#include "model/core/error.h"
#include "model/core/text.h"
#include "model/formats/hf_config.h"

HfLabels hf_labels_unnamed(int n) {
    HfLabels labels = {.n = n < HF_MAX_LABELS ? n : HF_MAX_LABELS};
    for (int i = 0; i < labels.n; i++) snprintf(labels.names[i], HF_LABEL_SIZE, "LABEL_%d", i);
    return labels;
}

bool hf_labels_equal(const HfLabels *a, const HfLabels *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++) same = strcmp(a->names[i], b->names[i]) == 0;
    return same;
}

bool hf_labels_are_unnamed(const HfLabels *labels) {
    HfLabels unnamed = hf_labels_unnamed(labels->n);
    return hf_labels_equal(labels, &unnamed);
}

int hf_label_find(const HfLabels *labels, const char *name) {
    for (int i = 0; i < labels->n; i++)
        if (strcmp(labels->names[i], name) == 0) return i;
    return -1;
}

const char *hf_labels_text(const HfLabels *labels, char out[HF_LABELS_TEXT]) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < labels->n; i++)
        used += (size_t)snprintf(out + used, HF_LABELS_TEXT - used, "%s%s", i > 0 ? ", " : "", labels->names[i]);
    return out;
}

static bool is_name(const char *name) {
    size_t size = strlen(name);
    uint32_t code;
    for (size_t at = 0, length; at < size; at += length) {
        length = (size_t)utf8_decode(name + at, size - at, &code);
        if (length == 0 || code < ' ' || code == 0x7f) return false;
    }
    return size > 0 && size < HF_LABEL_SIZE;
}

int hf_labels_add(HfLabels *labels, const char *name) {
    if (!is_name(name))
        FAIL(ERR_USAGE, "'%.*s' is no name of a score: 1 to %d bytes of UTF-8 without control characters are expected",
             HF_LABEL_SIZE, name, HF_LABEL_SIZE - 1);
    if (hf_label_find(labels, name) >= 0) FAIL(ERR_USAGE, "'%s' is given twice", name);
    if (labels->n == HF_MAX_LABELS)
        FAIL(ERR_USAGE, "'%s' is one too many: a score head has at most %d rows", name, HF_MAX_LABELS);
    snprintf(labels->names[labels->n++], HF_LABEL_SIZE, "%s", name);
    return OK;
}
