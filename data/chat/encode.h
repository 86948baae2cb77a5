/* Conversations for the loader: an encoder (data/encoder.h) that renders records with a template. */
#ifndef CRIA_DATA_CHAT_ENCODE_H
#define CRIA_DATA_CHAT_ENCODE_H

#include "data/chat/template.h"
#include "data/encoder.h"

typedef struct {
    const ChatTemplate *chat;
    const ChatColumns *columns; /* NULL: none */
    TrainOn train_on;
    size_t context;
    Overlong overlong;
    bool mask_stop; /* the tokens that end answers are not learned */
} ChatEncoderOptions;

typedef struct {
    RecordEncoder base; /* first, so that a pointer to it is one to the encoder */
    ChatEncoderOptions options;
} ChatEncoder;

/* What became of a record of n tokens that were more than the context; `kept`: after it was cut to it. */
int chat_tell_overlong(EncodedRecord *out, size_t n, size_t context, Overlong policy, bool kept);

/* What the options point to must outlive the encoder; nothing is to be freed. */
void chat_encoder_init(ChatEncoder *encoder, const ChatEncoderOptions *options);

#endif
