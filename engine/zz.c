/* SPDX-License-Identifier: Apache-2.0 */
/* Placeholder until the first engine file exists. */
extern int moge_engine_placeholder;
