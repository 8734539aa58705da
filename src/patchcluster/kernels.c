/* Exact nearest neighbours by way of 8-bit products, with the selection fused in. See screening.py.
 *
 * Rows are rounded to -127..127 times a scale of their own. The product of rounded rows gives half
 * the squared distance less half the query's squared norm, a "value", to within
 *
 *     |q| |b - rounded b| + |q - rounded q| |rounded b|        (Cauchy and Schwarz)
 *
 * so rows whose value less that bound exceeds what the k-th nearest can have are not looked at. The
 * distances of the others are taken from the rows themselves.
 *
 * Bank rows come in panels of 16, the lanes of a register: words[panel][step][lane], four values of
 * one row in a word. Queries are worked on 24 at a time, so that their 24 x 16 sums stay in
 * registers for a whole product. It needs an x86-64 with AVX512-VNNI; elsewhere `supported` says 0.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,bmi")))
#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    GROUP = 24,  /* queries in a tile */
    GROUPS = 4,  /* tiles of queries that share a panel while it is in the cache */
    SLOTS = GROUP * GROUPS,
    AHEAD = 6    /* rows that are fetched before their distance is taken */
};

typedef struct {
    const uint32_t *words;  /* [panels][steps][16] */
    const float *halves;    /* [panels][16], half the squared norms; infinity where no row is */
    const float *scales;    /* [panels][16] */
    const float *norms;     /* [panels][16], of the rounded rows */
    const float *left;      /* [panels][16], lengths of what was rounded off */
    const int32_t *initial; /* [panels][16], what makes queries of 0..255 signed */
    const int64_t *first;   /* [panels], the row in lane 0 */
    const float *rows;      /* [m][channels] */
    int64_t steps, channels;
} Bank;

typedef struct {
    const uint32_t *words; /* [q][steps], with 128 added to each value */
    const float *rows;     /* [q][channels] */
    const float *halves, *scales, *norms, *left; /* [q], as of the bank, but norms of the rows */
} Queries;

/* Of sums of float32 in 16 lanes, relative: halves are lowered by it and bounds raised. */
static float rounding(int64_t channels) { return (float)(channels / LANES + 32) * 0x1p-23f; }

/* A mask of the first `count` lanes, at most all of them. */
INLINE __mmask16 first_lanes(int64_t count)
{
    return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1);
}

EXPORT int supported(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi");
}

/* Rows whose scale is below are rounded to 0, as its inverse would be infinite. */
static const float SMALLEST = 1e-30f;

/* --- rounding rows -------------------------------------------------------------------------- */

typedef struct {
    float half, scale, norm, left;
    int32_t sum; /* of the rounded values */
} Rounded;

/* Values go to words[0], words[stride], ..., four to a word, with `added`; the words must be 0. */
TARGET static Rounded round_row(const float *row, int64_t channels, int32_t added, int64_t stride,
                                uint32_t *words)
{
    __m512 largest = _mm512_setzero_ps();
    for (int64_t i = 0; i < channels; i += LANES) {
        __mmask16 mask = first_lanes(channels - i);
        largest = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(mask, row + i)), largest);
    }
    float scale = _mm512_reduce_max_ps(largest) / 127;
    __m512 inverse = _mm512_set1_ps(scale > SMALLEST ? 1 / scale : 0);
    __m512 squares = _mm512_setzero_ps(), norms = squares, off = squares;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < channels; i += LANES) {
        __mmask16 mask = first_lanes(channels - i);
        __m512 values = _mm512_maskz_loadu_ps(mask, row + i);
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(values, inverse));
        __m512 rounded = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(scale));
        __m512 lost = _mm512_sub_ps(values, rounded);
        squares = _mm512_fmadd_ps(values, values, squares);
        norms = _mm512_fmadd_ps(rounded, rounded, norms);
        off = _mm512_fmadd_ps(lost, lost, off);
        sum = _mm512_add_epi32(sum, whole);
        uint32_t packed[4];
        _mm_storeu_si128((__m128i *)packed,
                         _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(added))));
        for (int64_t word = 0; word < 4 && i + 4 * word < channels; word++)
            words[(i / 4 + word) * stride] = packed[word];
    }
    float half = _mm512_reduce_add_ps(squares) / 2, more = 1 + rounding(channels);
    float norm = sqrtf(_mm512_reduce_add_ps(norms)) * more;
    float left = sqrtf(_mm512_reduce_add_ps(off)) * more + rounding(channels) * norm;
    return (Rounded){half, scale, norm, left, _mm512_reduce_add_epi32(sum)};
}

/* Panels begin..end; panel p has the rows first[p] to first[p] + counts[p]. words must be 0. */
EXPORT int pack_bank(const float *rows, int64_t channels, int64_t steps, int64_t begin,
                     int64_t end, const int64_t *first, const int64_t *counts, uint32_t *words,
                     float *halves, float *scales, float *norms, float *left, int32_t *initial)
{
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t lane = 0; lane < LANES; lane++) {
            int64_t at = panel * LANES + lane;
            Rounded one = {INFINITY, 0, 0, 0, 0};
            if (lane < counts[panel])
                one = round_row(rows + (first[panel] + lane) * channels, channels, 0, LANES,
                                words + panel * steps * LANES + lane);
            halves[at] = one.half * (1 - rounding(channels));
            scales[at] = one.scale;
            norms[at] = one.norm;
            left[at] = one.left;
            initial[at] = -128 * one.sum;
        }
    return 0;
}

/* Queries begin..end. words must be 0. */
EXPORT int pack_queries(const float *rows, int64_t channels, int64_t steps, int64_t begin,
                        int64_t end, uint32_t *words, float *halves, float *scales, float *norms,
                        float *left)
{
    for (int64_t i = begin; i < end; i++) {
        Rounded one = round_row(rows + i * channels, channels, 128, 1, words + i * steps);
        halves[i] = one.half;
        scales[i] = one.scale;
        norms[i] = sqrtf(2 * one.half) * (1 + rounding(channels));
        left[i] = one.left;
    }
    return 0;
}

/* --- products ------------------------------------------------------------------------------- */

/* The words of up to 96 queries, [group][step][24], in the order in which tiles read them, and what
 * values are made with. Slots without a query have scales of 0. */
typedef struct {
    uint32_t *words;
    float scales[SLOTS], norms[SLOTS], left[SLOTS];
} Block;

static void load_block(Block *block, const Queries *queries, int64_t steps, const int64_t *which,
                       int64_t count)
{
    for (int64_t slot = 0; slot < SLOTS; slot++) {
        uint32_t *to = block->words + slot / GROUP * steps * GROUP + slot % GROUP;
        int64_t query = which[slot < count ? slot : 0];
        for (int64_t step = 0; step < steps; step++)
            to[step * GROUP] = queries->words[query * steps + step];
        block->scales[slot] = slot < count ? queries->scales[query] : 0;
        block->norms[slot] = slot < count ? queries->norms[query] : 0;
        block->left[slot] = slot < count ? queries->left[query] : 0;
    }
}

/* Values of the 16 rows of a panel for each of 24 queries. */
TARGET static void multiply(const Bank *bank, int64_t panel, const uint32_t *group,
                            const float *query_scales, float values[GROUP][LANES])
{
    const uint32_t *words = bank->words + panel * bank->steps * LANES;
    __m512i sums[GROUP], start = _mm512_loadu_si512(bank->initial + panel * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < GROUP; i++)
        sums[i] = start;
    for (int64_t step = 0; step < bank->steps; step++) {
        __m512i rows = _mm512_loadu_si512(words + step * LANES);
        const uint32_t *of_step = group + step * GROUP;
#pragma GCC unroll 24
        for (int i = 0; i < GROUP; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi32((int)of_step[i]), rows);
    }
    /* Through memory, since the compiler would otherwise spill the sums within the loop. */
#pragma GCC unroll 24
    for (int i = 0; i < GROUP; i++)
        _mm512_store_si512(values[i], sums[i]);
    __m512 halves = _mm512_loadu_ps(bank->halves + panel * LANES);
    __m512 scales = _mm512_loadu_ps(bank->scales + panel * LANES);
    for (int i = 0; i < GROUP; i++) {
        __m512 both = _mm512_mul_ps(scales, _mm512_set1_ps(query_scales[i]));
        __m512 dots = _mm512_cvtepi32_ps(_mm512_load_si512(values[i]));
        _mm512_store_ps(values[i], _mm512_fnmadd_ps(both, dots, halves));
    }
}

/* --- the smallest value of each block of rows ----------------------------------------------- */

/* minima[b][query] for the queries begin..end of `all`; block b has the panels bounds[b] to
 * bounds[b + 1]. Returns -1 if there is no memory. */
TARGET EXPORT int block_minima(const Bank *bank, const Queries *queries, int64_t begin,
                               int64_t end, int64_t all, const int64_t *bounds, int64_t blocks,
                               float *minima)
{
    Block block = {malloc(sizeof(uint32_t) * SLOTS * bank->steps), {0}, {0}, {0}};
    if (!block.words)
        return -1;
    for (int64_t base = begin; base < end; base += SLOTS) {
        int64_t count = end - base < SLOTS ? end - base : SLOTS, which[SLOTS];
        for (int64_t i = 0; i < count; i++)
            which[i] = base + i;
        load_block(&block, queries, bank->steps, which, count);
        for (int64_t b = 0; b < blocks; b++) {
            _Alignas(64) float least[SLOTS][LANES], values[GROUP][LANES];
            for (int i = 0; i < SLOTS; i++)
                _mm512_store_ps(least[i], _mm512_set1_ps(INFINITY));
            for (int64_t panel = bounds[b]; panel < bounds[b + 1]; panel++)
                for (int64_t g = 0; g * GROUP < count; g++) {
                    multiply(bank, panel, block.words + g * GROUP * bank->steps,
                             block.scales + g * GROUP, values);
                    for (int64_t i = 0; i < GROUP; i++) {
                        __m512 one = _mm512_load_ps(values[i]);
                        float *kept = least[g * GROUP + i];
                        _mm512_store_ps(kept, _mm512_min_ps(one, _mm512_load_ps(kept)));
                    }
                }
            for (int64_t i = 0; i < count; i++)
                minima[b * all + base + i] = _mm512_reduce_min_ps(_mm512_load_ps(least[i]));
        }
    }
    free(block.words);
    return 0;
}

/* --- the nearest rows ----------------------------------------------------------------------- */

/* Rows that may be among the nearest of one query: their values, the least that these can be, and
 * where they are (panel * 16 + lane). The rest of the rows have more than `limit` at least. */
typedef struct {
    float *values, *least;
    uint32_t *places;
    int64_t count, full; /* when it is `full`, the limit is lowered */
    float rounding;      /* of sums of float32, what the final check allows for */
} Candidates;

/* A number that at least k of the values do not exceed, hardly above the k-th smallest of them. */
TARGET static float kth_smallest(const float *values, int64_t count, int64_t k)
{
    __m512 least = _mm512_set1_ps(INFINITY), most = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < count; i += LANES) {
        __m512 some = _mm512_loadu_ps(values + i);
        least = _mm512_mask_min_ps(least, first_lanes(count - i), least, some);
        most = _mm512_mask_max_ps(most, first_lanes(count - i), most, some);
    }
    float low = _mm512_reduce_min_ps(least), high = _mm512_reduce_max_ps(most);
    for (;;) {
        float middle = low / 2 + high / 2;
        if (!(middle > low && middle < high))
            return high;
        int64_t below = 0;
        for (int64_t i = 0; i < count; i += LANES)
            below += __builtin_popcount(
                _mm512_mask_cmp_ps_mask(first_lanes(count - i), _mm512_loadu_ps(values + i),
                                        _mm512_set1_ps(middle), _CMP_LE_OQ));
        if (below < k)
            low = middle;
        else
            high = middle;
        if (below >= k && below <= k + k / 16)
            return high;
    }
}

/* Append the rows of a panel that `mask` names. */
TARGET static void append(Candidates *found, __mmask16 mask, __m512 values, __m512 least,
                          __m512i places)
{
    int64_t at = found->count;
    _mm512_storeu_ps(found->values + at, _mm512_maskz_compress_ps(mask, values));
    _mm512_storeu_ps(found->least + at, _mm512_maskz_compress_ps(mask, least));
    _mm512_storeu_si512(found->places + at, _mm512_maskz_compress_epi32(mask, places));
    found->count += __builtin_popcount(mask);
}

/* A lower limit, with all candidates dropped that lie above it. It is the k-th smallest value and a
 * quarter of the bounds more: roundings hardly ever add up to that, and in the end it is checked.
 * Where three quarters of the room are left full, rounding hides which rows are nearest: the query
 * is given up, its limit is minus infinity. */
TARGET static float lower_limit(Candidates *found, int64_t k, int64_t most, float limit)
{
    if (found->count < k || limit == -INFINITY)
        return limit;
    int64_t count = found->count;
    __m512 bounds = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES)
        bounds = _mm512_mask_add_ps(bounds, first_lanes(count - i), bounds,
                                    _mm512_sub_ps(_mm512_loadu_ps(found->values + i),
                                                  _mm512_loadu_ps(found->least + i)));
    float enough = kth_smallest(found->values, count, k);
    enough += _mm512_reduce_add_ps(bounds) / (4 * (float)count) + found->rounding;
    limit = enough < limit ? enough : limit;
    found->count = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        __m512 least = _mm512_loadu_ps(found->least + i);
        __mmask16 mask = _mm512_mask_cmp_ps_mask(first_lanes(count - i), least,
                                                 _mm512_set1_ps(limit), _CMP_LE_OQ);
        append(found, mask, _mm512_loadu_ps(found->values + i), least,
               _mm512_loadu_si512(found->places + i));
    }
    found->full = 2 * found->count + 8 * LANES;
    found->full = found->full < most ? found->full : most;
    return found->count <= most / 4 * 3 ? limit : -INFINITY;
}

/* Values less what rounding can have added to them: |q| |b - rounded b| + |q - rounded q| |b|. */
TARGET INLINE __m512 take_bound(__m512 values, float length, __m512 off, float left, __m512 norms)
{
    values = _mm512_fnmadd_ps(_mm512_set1_ps(length), off, values);
    return _mm512_fnmadd_ps(_mm512_set1_ps(left), norms, values);
}

/* Append what a panel has for 24 queries; lower the limits of those that have become full. */
TARGET static void collect(const Bank *bank, int64_t panel, const Block *block, int64_t group,
                           float values[GROUP][LANES], Candidates *found, float *limits,
                           int64_t k, int64_t most)
{
    _Alignas(16) uint16_t masks[GROUP];
    const float *lengths = block->norms + group * GROUP, *left = block->left + group * GROUP;
    __m512 off = _mm512_loadu_ps(bank->left + panel * LANES);
    __m512 norms = _mm512_loadu_ps(bank->norms + panel * LANES);
    for (int i = 0; i < GROUP; i++) {
        __m512 least = take_bound(_mm512_load_ps(values[i]), lengths[i], off, left[i], norms);
        masks[i] = _mm512_cmp_ps_mask(least, _mm512_set1_ps(limits[i]), _CMP_LT_OQ);
    }
    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)(panel * LANES)));
    for (int eight = 0; eight < GROUP; eight += 8) {
        if (_mm_testz_si128(_mm_load_si128((const __m128i *)(masks + eight)), _mm_set1_epi8(-1)))
            continue;
        for (int i = eight; i < eight + 8; i++) {
            if (!masks[i])
                continue;
            __m512 value = _mm512_load_ps(values[i]);
            __m512 least = take_bound(value, lengths[i], off, left[i], norms);
            append(found + i, masks[i], value, least, places);
            if (found[i].count >= found[i].full)
                limits[i] = lower_limit(found + i, k, most, limits[i]);
        }
    }
}

TARGET static float distance(const float *a, const float *b, int64_t channels)
{
    __m512 sum = _mm512_setzero_ps(), other = sum;
    int64_t i = 0;
    for (; i + 2 * LANES <= channels; i += 2 * LANES) {
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i));
        __m512 e = _mm512_sub_ps(_mm512_loadu_ps(a + i + LANES), _mm512_loadu_ps(b + i + LANES));
        sum = _mm512_fmadd_ps(d, d, sum);
        other = _mm512_fmadd_ps(e, e, other);
    }
    for (; i < channels; i += LANES) {
        __mmask16 mask = first_lanes(channels - i);
        __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, a + i),
                                 _mm512_maskz_loadu_ps(mask, b + i));
        sum = _mm512_fmadd_ps(d, d, sum);
    }
    return sqrtf(_mm512_reduce_add_ps(_mm512_add_ps(sum, other)));
}

/* Row and distance as one number, which orders by distance, then by row. */
typedef uint64_t Key;

static Key key_of(float distance, uint32_t row)
{
    uint32_t bits; /* numbers that are not negative order as their bits do */
    memcpy(&bits, &distance, sizeof bits);
    return (Key)bits << 32 | row;
}

static float distance_of(Key key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float distance;
    memcpy(&distance, &bits, sizeof distance);
    return distance;
}

static int compare_keys(const void *a, const void *b)
{
    Key x = *(const Key *)a, y = *(const Key *)b;
    return (x > y) - (x < y);
}

/* Distances of `count` places from a query, as keys. */
TARGET static void measure(const Bank *bank, const float *query, const uint32_t *places,
                           int64_t count, Key *keys)
{
    int64_t channels = bank->channels;
    const float *rows[AHEAD];
    for (int64_t i = 0; i < count + AHEAD; i++) {
        if (i >= AHEAD) {
            const float *row = rows[i % AHEAD];
            uint32_t number = (uint32_t)((row - bank->rows) / channels);
            keys[i - AHEAD] = key_of(distance(query, row, channels), number);
        }
        if (i < count) {
            const float *row = bank->rows + (bank->first[places[i] / LANES] + places[i] % LANES) *
                                                channels;
            for (int64_t j = 0; j < channels; j += LANES)
                _mm_prefetch((const char *)(row + j), _MM_HINT_T0);
            rows[i % AHEAD] = row;
        }
    }
}

/* Candidates -> the k nearest rows, ascending. First the k that seem nearest are measured, then
 * those that can be nearer than the farthest of these. Returns whether no other row can. */
TARGET static int rank(Candidates *found, const Bank *bank, const Queries *queries, int64_t query,
                       int64_t k, float limit, Key *keys, float *distances, int64_t *rows)
{
    if (found->count < k || limit == -INFINITY)
        return 0;
    const float *asked = queries->rows + query * bank->channels;
    float slop = rounding(bank->channels);
    float seems = kth_smallest(found->values, found->count, k), farthest = 0;
    int64_t near = 0;
    for (int64_t i = 0; i < found->count; i++)
        if (found->values[i] <= seems) {
            uint32_t place = found->places[i];
            found->places[i] = found->places[near];
            found->least[i] = found->least[near];
            found->values[i] = found->values[near];
            found->places[near++] = place;
        }
    measure(bank, asked, found->places, near, keys);
    for (int64_t i = 0; i < near; i++)
        farthest = distance_of(keys[i]) > farthest ? distance_of(keys[i]) : farthest;
    float reach = farthest * farthest / 2;
    reach += slop * (reach + queries->halves[query]) - queries->halves[query];
    int64_t all = near;
    for (int64_t i = near; i < found->count; i++)
        if (found->least[i] <= reach)
            found->places[all++] = found->places[i];
    measure(bank, asked, found->places + near, all - near, keys + near);
    qsort(keys, (size_t)all, sizeof *keys, compare_keys);
    for (int64_t i = 0; i < k; i++) {
        distances[i] = distance_of(keys[i]);
        rows[i] = (int64_t)(uint32_t)keys[i];
    }
    reach = distances[k - 1] * distances[k - 1] / 2;
    return reach + slop * (reach + queries->halves[query]) - queries->halves[query] <= limit;
}

/* The k nearest rows of the panels begin..end for the queries which[0..count) -> distances
 * [count][k], rows [count][k], proven [count]; where that is 0 the others mean nothing.
 * Returns -1 if there is no memory. */
TARGET EXPORT int nearest(const Bank *bank, const Queries *queries, int64_t begin, int64_t end,
                          const int64_t *which, int64_t count, int64_t k, float *distances,
                          int64_t *rows, uint8_t *proven)
{
    int64_t most = 8 * k + 4096, room = most + 2 * LANES;
    Block block = {malloc(sizeof(uint32_t) * SLOTS * bank->steps), {0}, {0}, {0}};
    float *numbers = malloc(sizeof(float) * SLOTS * room * 3);
    Key *keys = malloc(sizeof(Key) * room);
    int failed = !block.words || !numbers || !keys;
    for (int64_t base = 0; base < count && !failed; base += SLOTS) {
        int64_t here = count - base < SLOTS ? count - base : SLOTS;
        Candidates found[SLOTS];
        float limits[SLOTS];
        load_block(&block, queries, bank->steps, which + base, here);
        for (int64_t i = 0; i < SLOTS; i++) {
            float *of_slot = numbers + i * room * 3;
            found[i] = (Candidates){of_slot, of_slot + room, (uint32_t *)(of_slot + 2 * room), 0,
                                    2 * k + 8 * LANES, 0};
            limits[i] = i < here ? INFINITY : -INFINITY;
            if (i < here)
                found[i].rounding = 4 * rounding(bank->channels) * queries->halves[which[base + i]];
        }
        for (int64_t panel = begin; panel < end; panel++)
            for (int64_t g = 0; g * GROUP < here; g++) {
                _Alignas(64) float values[GROUP][LANES];
                multiply(bank, panel, block.words + g * GROUP * bank->steps,
                         block.scales + g * GROUP, values);
                collect(bank, panel, &block, g, values, found + g * GROUP, limits + g * GROUP, k,
                        most);
            }
        for (int64_t i = 0; i < here; i++) {
            limits[i] = lower_limit(found + i, k, most, limits[i]);
            proven[base + i] = (uint8_t)rank(found + i, bank, queries, which[base + i], k,
                                             limits[i], keys, distances + (base + i) * k,
                                             rows + (base + i) * k);
        }
    }
    free(block.words);
    free(numbers);
    free(keys);
    return failed ? -1 : 0;
}

#else

EXPORT int supported(void) { return 0; }

#endif
