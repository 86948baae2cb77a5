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
} ChatEncoderOptions;

typedef struct {
    RecordEncoder base; /* first, so that a pointer to it is one to the encoder */
    ChatEncoderOptions options;
} ChatEncoder;

/* What the options point to must outlive the encoder; nothing is to be freed. */
void chat_encoder_init(ChatEncoder *encoder, const ChatEncoderOptions *options);

#endif
