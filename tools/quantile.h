/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOGE_QUANTILE_H
#define MOGE_QUANTILE_H

#include <stddef.h>

/* Sorts n values, the least first. */
void moge_values_sort(double *values, size_t n);

/* What a share (0..1) of n >= 1 sorted values lies below, interpolated linearly between neighbours
 * (numpy's "linear"). */
double moge_quantile(const double *sorted, size_t n, double share);

#endif
