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
 * registers for a whole product; where the processor has AMX, in its tiles, with two panels at a
 * time. It needs an x86-64 with AVX512-VNNI; elsewhere `supported` says 0.
 */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gaps.h"

#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,bmi")))
#if __has_include(<amxint8intrin.h>)
#define TILES                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,bmi,amx-tile,amx-int8")))
#else /* an older compiler */
#define TILES TARGET
#define NO_TILES
#endif
#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16,
    GROUP = 24,  /* queries in a tile */
    GROUPS = 4,  /* tiles of queries that share a panel while it is in the cache */
    SLOTS = GROUP * GROUPS,
    PANELS = 2,  /* that are multiplied together */
    DEPTH = 16,  /* steps of a tile of AMX, at most */
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

static int allowed; /* whether products may go by AMX */

/* Whether this processor has AMX for 8 bits and the system lets this process use it. */
static int may_use_tiles(void)
{
#ifdef NO_TILES
    return 0;
#else
    enum { AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_TILE) || !(d & AMX_INT8))
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
#endif
}

/* Have products go by AMX, if `wanted`, or by AVX512-VNNI. Returns whether they go by AMX. */
EXPORT int use_tiles(int wanted) { return allowed = wanted && may_use_tiles(); }

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

/* Words that a row of so many channels takes: equal parts of at most 16, which are tiles of AMX. */
EXPORT int64_t steps_of(int64_t channels)
{
    int64_t steps = (channels + 3) / 4, parts = (steps + DEPTH - 1) / DEPTH;
    return (steps + parts - 1) / parts * parts;
}

/* Whether products of such rows go by AMX: for a single part it does not pay. */
static int by_tiles(int64_t steps) { return allowed && steps > DEPTH; }

static int64_t depth_of(int64_t steps) { return steps / ((steps + DEPTH - 1) / DEPTH); }

/* The words of up to 96 queries in the order in which they are read, [group][step][24], or, for
 * AMX, [group][part][24][depth]; and what values are made with. Slots without a query have scales
 * of 0. */
typedef struct {
    uint32_t *words;
    float scales[SLOTS], norms[SLOTS], left[SLOTS];
} Block;

static void load_block(Block *block, const Queries *queries, int64_t steps, const int64_t *which,
                       int64_t count)
{
    int64_t depth = depth_of(steps);
    int tiles = by_tiles(steps);
    for (int64_t slot = 0; slot < SLOTS; slot++) {
        uint32_t *to = block->words + slot / GROUP * steps * GROUP;
        int64_t query = which[slot < count ? slot : 0], in_group = slot % GROUP;
        const uint32_t *from = queries->words + query * steps;
        for (int64_t part = 0; tiles && part < steps; part += depth)
            memcpy(to + part * GROUP + in_group * depth, from + part, sizeof *to * depth);
        for (int64_t step = 0; !tiles && step < steps; step++)
            to[step * GROUP + in_group] = from[step];
        block->scales[slot] = slot < count ? queries->scales[query] : 0;
        block->norms[slot] = slot < count ? queries->norms[query] : 0;
        block->left[slot] = slot < count ? queries->left[query] : 0;
    }
}

/* Sums of products of the 16 rows of a panel with each of 24 queries. */
TARGET INLINE void multiply(const Bank *bank, int64_t panel, const uint32_t *group,
                            __m512i sums[GROUP])
{
    const uint32_t *words = bank->words + panel * bank->steps * LANES;
    __m512i start = _mm512_loadu_si512(bank->initial + panel * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < GROUP; i++)
        sums[i] = start;
    for (int64_t step = 0; step < bank->steps; step++) {
        __m512i rows = _mm512_loadu_si512(words + step * LANES);
        const uint32_t *of_step = group + step * GROUP;
#pragma GCC unroll 24 /* the intrinsic would have the compiler spill the sums within the loop */
        for (int i = 0; i < GROUP; i++)
            __asm__("vpdpbusd %2, %1, %0"
                    : "+v"(sums[i])
                    : "v"(_mm512_set1_epi32((int)of_step[i])), "v"(rows));
    }
}

#ifdef NO_TILES
static void begin_tiles(int64_t steps) { (void)steps; }
static void end_tiles(int64_t steps) { (void)steps; }
static void multiply_tiles(const Bank *bank, int64_t panel, int64_t other, const uint32_t *group,
                           int32_t sums[PANELS][GROUP][LANES])
{
    (void)bank, (void)panel, (void)other, (void)group, (void)sums;
}
#else
/* The intrinsics of tiles do not tell the compiler what they read. */
#define MEMORY_IS_READ __asm__ volatile("" ::: "memory")

/* Tiles 0 to 3 are sums, of 12 queries and a panel each; 4 and 5 queries; 6 and 7 panels. */
TILES static void begin_tiles(int64_t steps)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        shapes.rows[tile] = (uint8_t)(tile < 6 ? GROUP / 2 : depth_of(steps));
        shapes.bytes[tile] = (uint16_t)(4 * (tile == 4 || tile == 5 ? depth_of(steps) : LANES));
    }
    MEMORY_IS_READ;
    if (by_tiles(steps))
        _tile_loadconfig(&shapes);
}

TILES static void end_tiles(int64_t steps)
{
    if (by_tiles(steps))
        _tile_release();
}

/* `multiply` with AMX, for two panels. */
TILES INLINE void multiply_tiles(const Bank *bank, int64_t panel, int64_t other,
                                 const uint32_t *group, int32_t sums[PANELS][GROUP][LANES])
{
    int64_t steps = bank->steps, depth = depth_of(steps);
    const uint32_t *words = bank->words + panel * steps * LANES;
    const uint32_t *others = bank->words + other * steps * LANES;
    MEMORY_IS_READ;
    _tile_loadd(0, bank->initial + panel * LANES, 0);
    _tile_loadd(1, bank->initial + other * LANES, 0);
    _tile_loadd(2, bank->initial + panel * LANES, 0);
    _tile_loadd(3, bank->initial + other * LANES, 0);
    for (int64_t part = 0; part < steps; part += depth) {
        _tile_loadd(4, group + part * GROUP, 4 * depth);
        _tile_loadd(6, words + part * LANES, 4 * LANES);
        _tile_loadd(7, others + part * LANES, 4 * LANES);
        _tile_loadd(5, group + part * GROUP + depth * GROUP / 2, 4 * depth);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 4 * LANES);
    _tile_stored(1, sums[1], 4 * LANES);
    _tile_stored(2, sums[0] + GROUP / 2, 4 * LANES);
    _tile_stored(3, sums[1] + GROUP / 2, 4 * LANES);
}
#endif

/* A sum as a value: half a squared norm less the product of the rounded rows. */
TARGET INLINE __m512 value_of(__m512i sum, __m512 halves, __m512 scales, float query_scale)
{
    __m512 both = _mm512_mul_ps(scales, _mm512_set1_ps(query_scale));
    return _mm512_fnmadd_ps(both, _mm512_cvtepi32_ps(sum), halves);
}

/* Values of the 16 rows of a panel for each of 24 queries, `stride` numbers apart. */
TARGET static void write_panel(const Bank *bank, int64_t panel, const uint32_t *group,
                               const float *query_scales, float *values, int64_t stride)
{
    __m512i sums[GROUP];
    multiply(bank, panel, group, sums);
    __m512 halves = _mm512_loadu_ps(bank->halves + panel * LANES);
    __m512 scales = _mm512_loadu_ps(bank->scales + panel * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < GROUP; i++)
        _mm512_storeu_ps(values + i * stride, value_of(sums[i], halves, scales, query_scales[i]));
}

/* Values of one or two panels, from `panel` to below `end`, for each of 24 queries, `stride`
 * numbers apart. */
TILES static void write_values(const Bank *bank, int64_t panel, int64_t end, const uint32_t *group,
                               const float *query_scales, float *values, int64_t stride)
{
    int64_t count = end - panel < PANELS ? end - panel : PANELS;
    if (!by_tiles(bank->steps)) {
        for (int64_t p = 0; p < count; p++)
            write_panel(bank, panel + p, group, query_scales, values + p * LANES, stride);
        return;
    }
    _Alignas(64) int32_t sums[PANELS][GROUP][LANES];
    multiply_tiles(bank, panel, panel + count - 1, group, sums);
    for (int64_t p = 0; p < count; p++) {
        __m512 halves = _mm512_loadu_ps(bank->halves + (panel + p) * LANES);
        __m512 scales = _mm512_loadu_ps(bank->scales + (panel + p) * LANES);
        for (int i = 0; i < GROUP; i++)
            _mm512_storeu_ps(values + i * stride + p * LANES,
                             value_of(_mm512_load_si512(sums[p][i]), halves, scales,
                                      query_scales[i]));
    }
}

/* Lower `least` to the values of a panel for each of 24 queries, where these are lower. */
TARGET static void lower(const Bank *bank, int64_t panel, const uint32_t *group,
                         const float *query_scales, float least[GROUP][LANES])
{
    __m512i sums[GROUP];
    multiply(bank, panel, group, sums);
    __m512 halves = _mm512_loadu_ps(bank->halves + panel * LANES);
    __m512 scales = _mm512_loadu_ps(bank->scales + panel * LANES);
#pragma GCC unroll 24
    for (int i = 0; i < GROUP; i++) {
        __m512 value = value_of(sums[i], halves, scales, query_scales[i]);
        _mm512_store_ps(least[i], _mm512_min_ps(value, _mm512_load_ps(least[i])));
    }
}

/* `lower` with AMX, for two panels. */
TILES static void lower_tiles(const Bank *bank, int64_t panel, int64_t other, const uint32_t *group,
                              const float *query_scales, float least[GROUP][LANES])
{
    _Alignas(64) int32_t sums[PANELS][GROUP][LANES];
    multiply_tiles(bank, panel, other, group, sums);
    __m512 halves = _mm512_loadu_ps(bank->halves + panel * LANES);
    __m512 scales = _mm512_loadu_ps(bank->scales + panel * LANES);
    __m512 their_halves = _mm512_loadu_ps(bank->halves + other * LANES);
    __m512 their_scales = _mm512_loadu_ps(bank->scales + other * LANES);
    for (int i = 0; i < GROUP; i++) {
        __m512 value = value_of(_mm512_load_si512(sums[0][i]), halves, scales, query_scales[i]);
        __m512 theirs = value_of(_mm512_load_si512(sums[1][i]), their_halves, their_scales,
                                 query_scales[i]);
        value = _mm512_min_ps(value, theirs);
        _mm512_store_ps(least[i], _mm512_min_ps(value, _mm512_load_ps(least[i])));
    }
}

/* --- the smallest value of each block of rows ----------------------------------------------- */

/* The smallest value of the panels begin..end for each query of a block of queries. */
TARGET static void least_of_block(const Bank *bank, int64_t begin, int64_t end, const Block *block,
                                  int64_t count, float minima[SLOTS])
{
    int tiles = by_tiles(bank->steps);
    for (int64_t g = 0; g * GROUP < count; g++) {
        _Alignas(64) float least[GROUP][LANES];
        const uint32_t *group = block->words + g * GROUP * bank->steps;
        const float *scales = block->scales + g * GROUP;
        for (int i = 0; i < GROUP; i++)
            _mm512_store_ps(least[i], _mm512_set1_ps(INFINITY));
        for (int64_t panel = begin; !tiles && panel < end; panel++)
            lower(bank, panel, group, scales, least);
        for (int64_t panel = begin; tiles && panel < end; panel += PANELS)
            lower_tiles(bank, panel, panel + 1 < end ? panel + 1 : panel, group, scales, least);
        for (int i = 0; i < GROUP; i++)
            minima[g * GROUP + i] = _mm512_reduce_min_ps(_mm512_load_ps(least[i]));
    }
}

/* Load the queries base..end, at most 96; returns how many. */
static int64_t load_next(Block *block, const Queries *queries, int64_t steps, int64_t base,
                         int64_t end)
{
    int64_t count = end - base < SLOTS ? end - base : SLOTS, which[SLOTS];
    for (int64_t i = 0; i < count; i++)
        which[i] = base + i;
    load_block(block, queries, steps, which, count);
    return count;
}

/* A value of a query as a squared distance. */
static float square_of(float value, float half)
{
    float square = 2 * (value + half);
    return square > 0 ? square : 0;
}

/* squares[i][query] for the queries begin..end of `all`, of the distance to the nearest row of block
 * chosen[i]; block b has the panels bounds[b] to bounds[b + 1]. Returns -1 if there is no memory. */
TARGET EXPORT int block_squares(const Bank *bank, const Queries *queries, int64_t begin,
                                int64_t end, int64_t all, const int64_t *bounds,
                                const int64_t *chosen, int64_t blocks, float *squares)
{
    Block block = {malloc(sizeof(uint32_t) * SLOTS * bank->steps), {0}, {0}, {0}};
    if (!block.words)
        return -1;
    begin_tiles(bank->steps);
    for (int64_t base = begin; base < end; base += SLOTS) {
        int64_t count = load_next(&block, queries, bank->steps, base, end);
        for (int64_t b = 0; b < blocks; b++) {
            float least[SLOTS];
            least_of_block(bank, bounds[chosen[b]], bounds[chosen[b] + 1], &block, count, least);
            for (int64_t i = 0; i < count; i++)
                squares[b * all + base + i] = square_of(least[i], queries->halves[base + i]);
        }
    }
    end_tiles(bank->steps);
    free(block.words);
    return 0;
}

/* --- the nearest blocks --------------------------------------------------------------------- */

/* A block and its squared distance. */
typedef struct {
    float square;
    int32_t block;
} Near;

enum { NEAR = sizeof(Near) / sizeof(float) }; /* floats from one square to the next */

/* The `most` nearest of the blocks, ascending, blocks of equal distance in their order; returns how
 * many there are at a finite distance. */
TARGET static int64_t nearest_blocks(const float *squares, int64_t blocks, int64_t most, Near *found)
{
    int64_t count = 0;
    float limit = INFINITY;
    for (int64_t base = 0; base < blocks; base += LANES) {
        __m512 some = _mm512_maskz_loadu_ps(first_lanes(blocks - base), squares + base);
        unsigned mask = _mm512_mask_cmp_ps_mask(first_lanes(blocks - base), some,
                                                _mm512_set1_ps(limit), _CMP_LT_OQ);
        for (; mask; mask &= mask - 1) {
            int64_t block = base + __builtin_ctz(mask), at;
            float square = squares[block];
            if (!(square < limit))
                continue;
            for (at = count < most ? count++ : most - 1; at && found[at - 1].square > square; at--)
                found[at] = found[at - 1];
            found[at] = (Near){square, (int32_t)block};
            limit = count < most ? INFINITY : found[most - 1].square;
        }
    }
    return count;
}

/* For the queries begin..end the `count` blocks that are nearest by their nearest row, and the
 * squares of these distances: chosen, chosen_squares [q][count]; where fewer are left, block 0 at
 * infinity fills the rest. left_out [q][blocks] are not among them. before [q]: how many of them lie
 * before the last gap (k, most, gap: see gaps.h; count is most + k at least). Returns -1 if there is
 * no memory. */
TARGET EXPORT int choose_blocks(const Bank *bank, const Queries *queries, int64_t begin,
                                int64_t end, const int64_t *bounds, int64_t blocks,
                                const uint8_t *left_out, int64_t k, int64_t most, float gap,
                                int64_t count, int64_t *chosen, float *chosen_squares,
                                int64_t *before)
{
    int64_t room = (blocks + LANES - 1) / LANES * LANES;
    Block block = {malloc(sizeof(uint32_t) * SLOTS * bank->steps), {0}, {0}, {0}};
    float *squares = malloc(sizeof(float) * SLOTS * room);
    Near *near = malloc(sizeof(Near) * room);
    int failed = !block.words || !squares || !near;
    begin_tiles(bank->steps);
    for (int64_t base = begin; base < end && !failed; base += SLOTS) {
        int64_t here = load_next(&block, queries, bank->steps, base, end);
        for (int64_t b = 0; b < blocks; b++) {
            float least[SLOTS];
            least_of_block(bank, bounds[b], bounds[b + 1], &block, here, least);
            for (int64_t i = 0; i < here; i++) {
                int out = left_out[(base + i) * blocks + b];
                float square = square_of(least[i], queries->halves[base + i]);
                squares[i * room + b] = out ? INFINITY : square;
            }
        }
        for (int64_t i = 0; i < here; i++) {
            int64_t found = nearest_blocks(squares + i * room, blocks, count, near);
            before[base + i] = before_gap(&near->square, NEAR, found, k, most, gap);
            for (int64_t j = 0; j < count; j++) {
                Near one = j < found ? near[j] : (Near){INFINITY, 0};
                chosen[(base + i) * count + j] = one.block;
                chosen_squares[(base + i) * count + j] = one.square;
            }
        }
    }
    end_tiles(bank->steps);
    free(block.words);
    free(squares);
    free(near);
    return failed ? -1 : 0;
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
                           const float *values, int64_t stride, Candidates *found, float *limits,
                           int64_t k, int64_t most)
{
    _Alignas(16) uint16_t masks[GROUP];
    const float *lengths = block->norms + group * GROUP, *left = block->left + group * GROUP;
    __m512 off = _mm512_loadu_ps(bank->left + panel * LANES);
    __m512 norms = _mm512_loadu_ps(bank->norms + panel * LANES);
    for (int i = 0; i < GROUP; i++) {
        __m512 value = _mm512_load_ps(values + i * stride);
        __m512 least = take_bound(value, lengths[i], off, left[i], norms);
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
            __m512 value = _mm512_load_ps(values + i * stride);
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
    begin_tiles(bank->steps);
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
        for (int64_t pair = begin; pair < end; pair += PANELS)
            for (int64_t g = 0; g * GROUP < here; g++) {
                _Alignas(64) float values[GROUP][PANELS][LANES];
                write_values(bank, pair, end, block.words + g * GROUP * bank->steps,
                             block.scales + g * GROUP, values[0][0], PANELS * LANES);
                for (int64_t panel = pair; panel < pair + PANELS && panel < end; panel++)
                    collect(bank, panel, &block, g, values[0][panel - pair], PANELS * LANES,
                            found + g * GROUP, limits + g * GROUP, k, most);
            }
        for (int64_t i = 0; i < here; i++) {
            limits[i] = lower_limit(found + i, k, most, limits[i]);
            proven[base + i] = (uint8_t)rank(found + i, bank, queries, which[base + i], k,
                                             limits[i], keys, distances + (base + i) * k,
                                             rows + (base + i) * k);
        }
    }
    end_tiles(bank->steps);
    free(block.words);
    free(numbers);
    free(keys);
    return failed ? -1 : 0;
}

/* --- the nearest row of chosen blocks ------------------------------------------------------- */

/* values[rows] of one query -> the nearest of these rows. The one that seems nearest is measured,
 * then those that can be nearer. A distance that is not a number says that it found none. */
TARGET static Key nearest_of_values(const Bank *bank, int64_t panel, int64_t rows,
                                    const float *values, const Queries *queries, int64_t query,
                                    uint32_t *places, Key *keys)
{
    const float *asked = queries->rows + query * bank->channels;
    float slop = rounding(bank->channels), half = queries->halves[query];
    __m512 least = _mm512_load_ps(values);
    for (int64_t i = LANES; i < rows; i += LANES)
        least = _mm512_min_ps(least, _mm512_load_ps(values + i));
    __m512 lowest = _mm512_set1_ps(_mm512_reduce_min_ps(least));
    int64_t seems = 0, count = 0;
    for (__mmask16 mask = 0; seems < rows; seems += LANES)
        if ((mask = _mm512_cmp_ps_mask(_mm512_load_ps(values + seems), lowest, _CMP_EQ_OQ))) {
            seems += __builtin_ctz(mask);
            break;
        }
    if (seems >= rows)
        return key_of(NAN, 0);
    places[0] = (uint32_t)(panel * LANES + seems);
    measure(bank, asked, places, 1, keys);
    Key best = keys[0];
    float reach = distance_of(best) * distance_of(best) / 2;
    __m512 limit = _mm512_set1_ps(fminf(reach + slop * (reach + half) - half, FLT_MAX));
    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int64_t i = 0; i < rows; i += LANES) {
        int64_t at = panel * LANES + i;
        __m512 bound = take_bound(_mm512_load_ps(values + i), queries->norms[query],
                                  _mm512_loadu_ps(bank->left + at), queries->left[query],
                                  _mm512_loadu_ps(bank->norms + at));
        __mmask16 mask = _mm512_cmp_ps_mask(bound, limit, _CMP_LE_OQ);
        __m512i where = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)at));
        _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(mask, where));
        count += __builtin_popcount(mask);
    }
    measure(bank, asked, places, count, keys);
    for (int64_t i = 0; i < count; i++)
        best = keys[i] < best ? keys[i] : best;
    return best;
}

/* The blocks begin..end, block b of the panels bounds[b] to bounds[b + 1]: for each of the pairs
 * order[starts[b]..starts[b + 1]) the row of the block that is nearest to the query which[pair] ->
 * distances [pairs], rows [pairs]. Returns -1 if there is no memory. */
TARGET EXPORT int nearest_in_blocks(const Bank *bank, const Queries *queries, int64_t begin,
                                    int64_t end, const int64_t *bounds, const int64_t *starts,
                                    const int64_t *order, const int64_t *which, float *distances,
                                    int64_t *rows)
{
    int64_t panels = 0;
    for (int64_t b = begin; b < end; b++)
        panels = bounds[b + 1] - bounds[b] > panels ? bounds[b + 1] - bounds[b] : panels;
    int64_t room = panels * LANES;
    Block block = {malloc(sizeof(uint32_t) * SLOTS * bank->steps), {0}, {0}, {0}};
    float *values = aligned_alloc(64, sizeof(float) * SLOTS * (room + LANES));
    uint32_t *places = malloc(sizeof(uint32_t) * (room + LANES));
    Key *keys = malloc(sizeof(Key) * (room + LANES));
    int failed = !block.words || !values || !places || !keys;
    begin_tiles(bank->steps);
    for (int64_t b = begin; b < end && !failed; b++)
        for (int64_t base = starts[b]; base < starts[b + 1]; base += SLOTS) {
            int64_t left = starts[b + 1] - base, here = left < SLOTS ? left : SLOTS, asked[SLOTS];
            int64_t count = (bounds[b + 1] - bounds[b]) * LANES;
            for (int64_t i = 0; i < here; i++)
                asked[i] = which[order[base + i]];
            load_block(&block, queries, bank->steps, asked, here);
            for (int64_t p = bounds[b]; p < bounds[b + 1]; p += PANELS)
                for (int64_t g = 0; g * GROUP < here; g++)
                    write_values(bank, p, bounds[b + 1], block.words + g * GROUP * bank->steps,
                                 block.scales + g * GROUP,
                                 values + g * GROUP * room + (p - bounds[b]) * LANES, room);
            for (int64_t i = 0; i < here; i++) {
                Key key = nearest_of_values(bank, bounds[b], count, values + i * room, queries,
                                            asked[i], places, keys);
                distances[order[base + i]] = distance_of(key);
                rows[order[base + i]] = (int64_t)(uint32_t)key;
            }
        }
    end_tiles(bank->steps);
    free(block.words);
    free(values);
    free(places);
    free(keys);
    return failed ? -1 : 0;
}

#else

EXPORT int supported(void) { return 0; }

#endif
