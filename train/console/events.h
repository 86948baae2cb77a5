/* TensorBoard event files: records of TFRecord framing around Event protocol buffers. */
#ifndef CRIA_TRAIN_EVENTS_H
#define CRIA_TRAIN_EVENTS_H

#include <stddef.h>
#include <stdint.h>

typedef struct EventFile EventFile;

/* Creates DIRECTORY/events.out.tfevents.TIME.HOST.PID.N. TensorBoard drops points of `next_step` and later ones that
 * earlier files of the directory hold. */
int events_open(EventFile **file, const char *directory, int64_t next_step);
int events_scalar(EventFile *file, int64_t step, double wall_time, const char *tag, double value);
int events_sync(EventFile *file);
void events_close(EventFile *file);

#endif
