/* Braille patterns (Unicode block U+2800): a cell is 2 x 4 dots, bit i of the code point lights dot i:
 *
 *     0 3
 *     1 4
 *     2 5
 *     6 7     so that 72 columns carry 128 points beside their labels */
#include "train/console/curve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_WIDTH = 2, CELL_HEIGHT = 4, LABEL = 8, LEAST_WIDTH = 24, MOST_WIDTH = 200, MOST_HEIGHT = 60 };

typedef struct {
    double low, high;
} Range;

typedef struct {
    int columns, rows, cell_width, cell_height; /* rows and columns of characters; dots of one */
    bool *dots;                                 /* [rows * cell_height][columns * cell_width] */
    bool *marks;                                /* [rows][columns] */
    Range x, y;
} Plot;

static bool usable(const CurveSeries *series, size_t i) {
    return isfinite(series->x[i]) && isfinite(series->y[i]);
}

/* Widens the ranges to hold the series; returns how many points it has. */
static size_t measure(Plot *plot, const CurveSeries *series) {
    size_t n = 0;
    for (size_t i = 0; series && i < series->n; i++) {
        if (!usable(series, i)) continue;
        plot->x.low = fmin(plot->x.low, series->x[i]);
        plot->x.high = fmax(plot->x.high, series->x[i]);
        plot->y.low = fmin(plot->y.low, series->y[i]);
        plot->y.high = fmax(plot->y.high, series->y[i]);
        n++;
    }
    return n;
}

/* Which of n equal parts of the range the value is in. */
static int part(Range range, double value, int n) {
    double width = range.high - range.low;
    if (!(width > 0) || !isfinite(width)) return n / 2;
    int index = (int)((value - range.low) / width * n);
    return index < 0 ? 0 : index >= n ? n - 1 : index;
}

static void light(Plot *plot, int x, int y) {
    plot->dots[(size_t)y * (size_t)(plot->columns * plot->cell_width) + (size_t)x] = true;
}

/* One dot per column of dots, the mean of its points, joined to its left neighbour by a vertical stroke. */
static void draw_line(Plot *plot, const CurveSeries *series, double *sums, size_t *counts) {
    int width = plot->columns * plot->cell_width, height = plot->rows * plot->cell_height, previous = -1;
    for (size_t i = 0; i < series->n; i++) {
        if (!usable(series, i)) continue;
        int x = part(plot->x, series->x[i], width);
        sums[x] += series->y[i];
        counts[x]++;
    }
    for (int x = 0; x < width; x++) {
        if (!counts[x]) continue;
        int y = height - 1 - part(plot->y, sums[x] / (double)counts[x], height);
        light(plot, x, y);
        if (previous >= 0)
            for (int between = previous; between != y; between += between < y ? 1 : -1) light(plot, x, between);
        previous = y;
    }
}

static void draw_marks(Plot *plot, const CurveSeries *series) {
    for (size_t i = 0; series && i < series->n; i++) {
        if (!usable(series, i)) continue;
        int x = part(plot->x, series->x[i], plot->columns);
        int y = plot->rows - 1 - part(plot->y, series->y[i], plot->rows);
        plot->marks[(size_t)y * (size_t)plot->columns + (size_t)x] = true;
    }
}

static void put_cell(Text *out, const Plot *plot, int row, int column, bool unicode) {
    static const int bit[CELL_HEIGHT][CELL_WIDTH] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}};
    unsigned pattern = 0;
    if (plot->marks[(size_t)row * (size_t)plot->columns + (size_t)column]) {
        text_puts(out, "o");
        return;
    }
    for (int y = 0; y < plot->cell_height; y++)
        for (int x = 0; x < plot->cell_width; x++) {
            size_t at = (size_t)(row * plot->cell_height + y) * (size_t)(plot->columns * plot->cell_width) +
                        (size_t)(column * plot->cell_width + x);
            if (plot->dots[at]) pattern |= 1u << bit[y][x];
        }
    char utf8[4];
    if (!pattern)
        text_puts(out, " ");
    else if (unicode)
        text_append(out, utf8, (size_t)utf8_encode(utf8, 0x2800 + pattern));
    else
        text_puts(out, "*");
}

static void put_plot(Text *out, const Plot *plot, bool unicode) {
    for (int row = 0; row < plot->rows; row++) {
        double share = plot->rows > 1 ? (double)row / (plot->rows - 1) : 0;
        double value = plot->y.high - share * (plot->y.high - plot->y.low);
        bool labelled = row == 0 || row == plot->rows - 1 || row == plot->rows / 2;
        if (labelled)
            text_printf(out, "%7.4g %s", value, unicode ? "┤" : "|");
        else
            text_printf(out, "%7s %s", "", unicode ? "│" : "|");
        for (int column = 0; column < plot->columns; column++) put_cell(out, plot, row, column, unicode);
        text_puts(out, "\n");
    }
    text_printf(out, "%7s %s", "", unicode ? "└" : "+");
    for (int column = 0; column < plot->columns; column++) text_puts(out, unicode ? "─" : "-");
    char first[32], last[32];
    snprintf(first, sizeof first, "%.6g", plot->x.low);
    snprintf(last, sizeof last, "%.6g", plot->x.high);
    text_printf(out, "\n%9s%s%*s\n", "", first, plot->columns - (int)strlen(first), last);
}

void curve_draw(Text *out, const char *title, const CurveSeries *line, const CurveSeries *marks, int width, int height,
                bool unicode) {
    width = width < LEAST_WIDTH ? LEAST_WIDTH : width > MOST_WIDTH ? MOST_WIDTH : width;
    height = height < 2 ? 2 : height > MOST_HEIGHT ? MOST_HEIGHT : height;
    Plot plot = {.columns = width - LABEL - 1,
                 .rows = height,
                 .cell_width = unicode ? CELL_WIDTH : 1,
                 .cell_height = unicode ? CELL_HEIGHT : 1,
                 .x = {INFINITY, -INFINITY},
                 .y = {INFINITY, -INFINITY}};
    text_printf(out, "%s\n", title);
    if (measure(&plot, line) + measure(&plot, marks) == 0) {
        text_puts(out, "(no points)\n");
        return;
    }
    size_t cells = (size_t)plot.columns * (size_t)plot.rows, across = (size_t)plot.columns * (size_t)plot.cell_width;
    plot.dots = calloc(cells * CELL_WIDTH * CELL_HEIGHT, sizeof *plot.dots);
    plot.marks = calloc(cells, sizeof *plot.marks);
    double *sums = calloc(across, sizeof *sums);
    size_t *counts = calloc(across, sizeof *counts);
    if (plot.dots && plot.marks && sums && counts) {
        draw_line(&plot, line, sums, counts);
        draw_marks(&plot, marks);
        put_plot(out, &plot, unicode);
    }
    free(plot.dots);
    free(plot.marks);
    free(sums);
    free(counts);
}
