/* A loss curve as text, for the end of a run and for reports in a terminal. */
#ifndef CRIA_TRAIN_CURVE_H
#define CRIA_TRAIN_CURVE_H

#include <stdbool.h>
#include <stddef.h>

#include "model/core/text.h"

typedef struct {
    const double *x, *y;
    size_t n;
} CurveSeries;

enum { CURVE_WIDTH = 72, CURVE_HEIGHT = 12 }; /* columns and rows that fit everywhere */

/* Appends a plot `width` columns wide with `height` rows of dots, labelled axes and a title. The line is the mean of
 * the points that fall in a column of dots; `marks` (may be NULL: none) are drawn as 'o', for sparse points such as
 * validations. With unicode false, letters only ('*'). Points that are not finite are passed over; without any point
 * nothing is appended but a remark. */
void curve_draw(Text *out, const char *title, const CurveSeries *line, const CurveSeries *marks, int width, int height,
                bool unicode);

#endif
