/* See proportion.h. */
#include "eval/proportion.h"

#include <math.h>

Proportion proportion(int64_t right, int64_t n) {
    const double z = 1.959963984540054; /* of the normal distribution's 0.975 */
    if (n == 0) return (Proportion){.high = 1};
    double count = (double)n, share = (double)right / count, scale = 1 + z * z / count;
    double middle = (share + z * z / (2 * count)) / scale;
    double half = z / scale * sqrt(share * (1 - share) / count + z * z / (4 * count * count));
    return (Proportion){n, right, share, fmax(0, middle - half), fmin(1, middle + half)};
}
