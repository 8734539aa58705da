/* What is known of rows of a bank's blocks, for a bank that has changed. See methods/tracing.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "gaps.h"

#define EXPORT __attribute__((visibility("default")))

/* Of q rows the `kept` nearest blocks, and the exact distances of `searched` of them. */
typedef struct {
    void *blocks;     /* [q][kept], numbers of block_bytes each, ascending in distance */
    float *squares;   /* [q][kept], squared distances by the first pass */
    int16_t *before;  /* [q], how many lie before the last gap */
    float *distances; /* [q][searched], exactly, of those behind it; NaN where that is not known */
    void *rows;       /* [q][searched], numbers of row_bytes each, the nearest row of the block */
    float *reach;     /* [q], all other blocks are at least so far */
    int64_t block_bytes, row_bytes, kept, searched;
} Known;

/* Numbers of one byte have no sign. */
static int32_t get(const void *numbers, int64_t bytes, int64_t at)
{
    return bytes == 1   ? ((const uint8_t *)numbers)[at]
           : bytes == 2 ? ((const int16_t *)numbers)[at]
                        : ((const int32_t *)numbers)[at];
}

static void put(void *numbers, int64_t bytes, int64_t at, int32_t number)
{
    if (bytes == 1)
        ((uint8_t *)numbers)[at] = (uint8_t)number;
    else if (bytes == 2)
        ((int16_t *)numbers)[at] = (int16_t)number;
    else
        ((int32_t *)numbers)[at] = number;
}

/* A block of the new bank; `place`: among those that were searched, or -1. */
typedef struct {
    float square;
    int32_t block, place;
} Near;

enum { NEAR = sizeof(Near) / sizeof(float) }; /* floats from one square to the next */

/* Those of a row that are left and those that were added, ascending; returns how many there are at
 * a finite distance. Of equal ones those that were there come first. columns [kept]: where the
 * row's blocks are in the new bank. */
static int64_t unite(const Known *known, int64_t row, const int32_t *columns, const Near *added,
                     int64_t additions, Near *found)
{
    const float *squares = known->squares + row * known->kept;
    int64_t first = known->before[row], count = 0, next = 0;
    if (first > known->kept - known->searched)
        first = known->kept - known->searched;
    for (int64_t i = 0; i < known->kept && squares[i] < INFINITY; i++) {
        for (; next < additions && added[next].square < squares[i]; next++)
            found[count++] = added[next];
        uint64_t place = (uint64_t)(i - first);
        found[count].square = squares[i];
        found[count].block = columns[i];
        found[count].place = place < (uint64_t)known->searched ? (int32_t)place : -1;
        count += columns[i] >= 0;
    }
    for (; next < additions && added[next].square < INFINITY; next++)
        found[count++] = added[next];
    return count;
}

/* Where blocks are in the new bank. */
static void find_columns(const Known *known, int64_t row, const int64_t *columns, int32_t *found)
{
    int64_t kept = known->kept, start = row * kept;
    if (known->block_bytes == 1)
        for (int64_t i = 0; i < kept; i++)
            found[i] = (int32_t)columns[((const uint8_t *)known->blocks)[start + i]];
    else
        for (int64_t i = 0; i < kept; i++)
            found[i] = (int32_t)columns[get(known->blocks, known->block_bytes, start + i)];
}

/* Whether it is certain, whatever was rounded, which blocks come before the last that decides and
 * where the gaps among them are. `near` has the square of infinity from `count` on. */
static int is_certain(const Near *near, int64_t last, int64_t after, float reach, int64_t k,
                      int64_t most, float gap, float rounding)
{
    float beyond = near[after].square < reach ? near[after].square : reach;
    if (!isinf(reach) && !(near[last].square * (1 + rounding) < beyond))
        return 0;
    float above = gap * (1 + 2 * rounding), below = gap * (1 - 2 * rounding);
    int certain = 1;
    for (int64_t rank = k; most && rank <= most; rank++) {
        float square = near[rank].square, before = near[rank - 1].square;
        certain &= (square > above * before) | (square < below * before);
    }
    return certain;
}

static int compare_near(const void *a, const void *b)
{
    const Near *x = a, *y = b;
    return x->square != y->square ? (x->square > y->square) - (x->square < y->square)
                                  : (x->block > y->block) - (x->block < y->block);
}

/* What is known of the rows begin..end with a new bank -> `to`, and whether that is enough: good
 * [q]. columns: where each block of the old bank is in the new one, -1: nowhere. fresh
 * [additions][all]: squares of distances of the rows to the blocks that were added, whose numbers
 * are numbers[additions]. k, most, gap: as of `choose_blocks`, but gap is squared and rows that are
 * of_a_kind [q] have none. rounding: of squares, relative. Returns -1 if there is no memory. */
EXPORT int place_blocks(const Known *known, const Known *to, int64_t begin, int64_t end,
                        int64_t all, const int64_t *columns, const float *fresh,
                        const int64_t *numbers, int64_t additions, const uint8_t *of_a_kind,
                        int64_t k, int64_t most_of_all, float gap, float rounding, uint8_t *good)
{
    int64_t kept = known->kept, searched = known->searched, united = kept + additions;
    Near *added = malloc(sizeof(Near) * (additions + 1));
    Near *near = malloc(sizeof(Near) * (united + 1));
    int32_t *places = malloc(sizeof(int32_t) * kept);
    int failed = !added || !near || !places;
    for (int64_t row = begin; row < end && !failed; row++) {
        for (int64_t i = 0; i < additions; i++)
            added[i] = (Near){fresh[i * all + row], (int32_t)numbers[i], -1};
        if (additions > 1)
            qsort(added, (size_t)additions, sizeof *added, compare_near);
        find_columns(known, row, columns, places);
        int64_t count = unite(known, row, places, added, additions, near);
        for (int64_t i = count; i <= united; i++)
            near[i] = (Near){INFINITY, 0, -1};
        int64_t most = of_a_kind[row] ? 0 : most_of_all;
        int64_t before = before_gap(&near->square, NEAR, count, k, most, gap);
        int64_t last = before + searched > most + k ? before + searched - 1 : most + k - 1;
        int64_t after = last + 1 < united ? last + 1 : united - 1;
        float reach = known->reach[row];
        good[row] = known->before[row] + searched <= kept && before + searched <= kept &&
                    last < united && is_certain(near, last, after, reach, k, most, gap, rounding);
        if (!good[row])
            continue;
        to->before[row] = (int16_t)before;
        to->reach[row] = additions && near[kept].square < reach ? near[kept].square : reach;
        for (int64_t i = 0; i < kept; i++)
            to->squares[row * kept + i] = near[i].square;
        for (int64_t i = 0; i < kept; i++)
            put(to->blocks, to->block_bytes, row * kept + i, near[i].block);
        for (int64_t i = 0; i < searched; i++) {
            const Near *one = near + before + i;
            int64_t place = row * searched + one->place;
            int is_known = one->place >= 0;
            to->distances[row * searched + i] = isinf(one->square) ? INFINITY
                                                : is_known         ? known->distances[place]
                                                                   : NAN;
            put(to->rows, to->row_bytes, row * searched + i,
                is_known ? get(known->rows, known->row_bytes, place) : 0);
        }
    }
    free(added);
    free(near);
    free(places);
    return failed ? -1 : 0;
}

/* Of the rows begin..end the k nearest of their searched blocks, behind the last gap: distances
 * [q][searched] and rows [q][searched] of the bank -> nearest [q][k], nearest_rows [q][k]. Rows
 * that are of_a_kind [q] have no gap. Of equal distances the first come first. Returns -1 if there
 * is no memory. */
EXPORT int rank_blocks(const float *distances, const int64_t *rows, int64_t begin, int64_t end,
                       int64_t searched, int64_t k, int64_t most, float gap,
                       const uint8_t *of_a_kind, float *nearest, int64_t *nearest_rows)
{
    Near *near = malloc(sizeof(Near) * (searched + 1));
    if (!near)
        return -1;
    for (int64_t row = begin; row < end; row++) {
        int64_t count = 0;
        for (int64_t i = 0; i < searched; i++) {
            float distance = distances[row * searched + i];
            int64_t at = i;
            for (; at && near[at - 1].square > distance; at--)
                near[at] = near[at - 1];
            near[at] = (Near){distance, 0, (int32_t)i};
            count += isfinite(distance);
        }
        int64_t limit = most < searched ? most : searched - 1;
        int64_t start = of_a_kind[row] ? 0 : before_gap(&near->square, NEAR, count, k, limit, gap);
        for (int64_t i = 0; i < k; i++) {
            nearest[row * k + i] = near[start + i].square;
            nearest_rows[row * k + i] = rows[row * searched + near[start + i].place];
        }
    }
    free(near);
    return 0;
}
