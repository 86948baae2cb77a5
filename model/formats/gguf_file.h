/* The inside of an open GGUF file, for the files of its reader. */
#ifndef CRIA_FORMATS_GGUF_FILE_H
#define CRIA_FORMATS_GGUF_FILE_H

#include "model/formats/gguf_metadata.h"
#include "model/formats/hf_config.h"

typedef struct {
    const char *bytes; /* where its elements lie */
    const char *name;  /* in the file */
    const GgmlTypeInfo *type;
    bool rotary; /* rows are still in llama.cpp's order */
} GgufPlace;

typedef struct {
    FileMap map;
    GgufHead head;
    HfConfig config;
    GgufPlace *places; /* of each array */
} GgufFile;

#endif
