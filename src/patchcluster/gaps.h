/* Where the last gap among ascending numbers lies. */

#include <stdint.h>

/* How many numbers lie before the last gap: where the next is more than `gap` times as large, at
 * least k and at most `most` lie before it and k of them behind it. There are `count`, `stride`
 * apart. */
static inline int64_t before_gap(const float *numbers, int64_t stride, int64_t count, int64_t k,
                                 int64_t most, float gap)
{
    int64_t before = 0;
    for (int64_t rank = k; rank <= most && rank + k <= count; rank++)
        if (numbers[rank * stride] > gap * numbers[(rank - 1) * stride])
            before = rank;
    return before;
}
