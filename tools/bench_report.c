/* SPDX-License-Identifier: Apache-2.0 */
/* A measurement against the limit that binds it:
 *
 *      limit = max(bytes / read bandwidth,
 *                  int8 products / int8 peak + 4-bit products / 4-bit peak + f32 products / FMA
 * peak)
 *
 * with bandwidth and peaks as the machine gave them meanwhile: medians, as the time is.  Bytes are
 * those that must be read at least once: the union of the experts touched, and the keys and values
 * of every sequence.  Products are those of weight matrices and of attention. */
#include "tools/bench_engine.h"

#include <errno.h>
#include <string.h>

static void count_matrix(struct moge_bench_cost *cost, const struct moge_matrix *m, double rows) {
    double macs = rows * m->n_out * m->n_in;
    *(m->type == MOGE_TYPE_Q8_0   ? &cost->i8_macs
      : m->type == MOGE_TYPE_Q4_0 ? &cost->i4_macs
                                  : &cost->f32_macs) += macs;
}

void moge_bench_count_macs(const struct moge_model *model, const struct moge_bench_work *work,
                           struct moge_bench_cost *cost) {
    double rows = (double)work->n_seqs * work->n_rows, n_used = model->router.n_used;
    /* Row j of a span attends to pos + j + 1 positions: a product with each key, one with each
     * value. */
    double attended = rows * (work->pos + 0.5 * (work->n_rows + 1));
    for (int32_t i = 0; i < model->info.n_layers; i++) {
        const struct moge_layer *layer = &model->layers[i];
        const struct moge_matrix *m[] = {&layer->q,    &layer->k,  &layer->v,    &layer->o,
                                         &layer->gate, &layer->up, &layer->down, &layer->router};
        for (size_t j = 0; j < sizeof m / sizeof m[0]; j++)
            count_matrix(cost, m[j], rows);
        if (layer->router.n_out > 0) {
            count_matrix(cost, &layer->gate_exps[0], rows * n_used);
            count_matrix(cost, &layer->up_exps[0], rows * n_used);
            count_matrix(cost, &layer->down_exps[0], rows * n_used);
        }
        cost->f32_macs += 2.0 * attended * model->info.n_heads * model->info.head_dim;
    }
    count_matrix(cost, &model->output, (double)work->n_seqs * work->n_logits);
}

/* ---- one line in each of the three forms ---- */

struct line {
    double median, q1, q3, tok_s, gb_s, gmac_s, bytes_ms, macs_ms, fraction;
    const char *bound;
};

static struct line line_of(const struct moge_bench *bench, const struct moge_bench_work *work,
                           const struct moge_bench_cost *cost) {
    const double *limit = bench->limits.of;
    int32_t n = bench->n_ms;
    struct line line = {
        .median = bench->ms[n / 2], .q1 = bench->ms[n / 4], .q3 = bench->ms[n - 1 - n / 4]};
    double bytes = cost->weight_bytes + cost->kv_bytes;
    line.tok_s = work->n_seqs * work->n_rows / line.median * 1e3;
    line.gb_s = bytes / line.median / 1e6;
    line.gmac_s = (cost->i8_macs + cost->i4_macs + cost->f32_macs) / line.median / 1e6;
    line.bytes_ms = bytes / limit[MOGE_LIMIT_READ] / 1e6;
    line.macs_ms = (cost->i8_macs / limit[MOGE_LIMIT_I8] + cost->i4_macs / limit[MOGE_LIMIT_I4] +
                    cost->f32_macs / limit[MOGE_LIMIT_F32]) /
                   1e6;
    line.bound = line.bytes_ms >= line.macs_ms ? "bandwidth" : "arithmetic";
    line.fraction = (line.bytes_ms >= line.macs_ms ? line.bytes_ms : line.macs_ms) / line.median;
    return line;
}

const char *const moge_bench_kv_names[3] = {
    [MOGE_KV_F16] = "f16", [MOGE_KV_F32] = "f32", [MOGE_KV_Q8_0] = "q8_0"};

void moge_bench_header(const struct moge_bench *bench) {
    const struct moge_model_info *info = moge_model_info(bench->model);
    const double *limit = bench->limits.of;
    printf("%s: %s, %.2f M parameters (%.2f M a token), %s, %.1f MB, loaded in %.0f ms\n",
           info->name, info->architecture, (double)info->n_params / 1e6,
           (double)info->n_params_active / 1e6, info->weights, (double)info->weight_bytes / 1e6,
           bench->load_ms);
    printf("%d threads, %s, behind %d positions, KV in %s\n", bench->n_threads, moge_kernels()->isa,
           bench->depth, moge_bench_kv_names[bench->kv_type]);
    printf("limits: %.1f GB/s, %.0f GMAC/s of int8, %.0f of 4-bit, %.0f of f32\n\n",
           limit[MOGE_LIMIT_READ], limit[MOGE_LIMIT_I8], limit[MOGE_LIMIT_I4],
           limit[MOGE_LIMIT_F32]);
    printf("%-8s %5s %10s %20s %9s %7s %8s %8s %10s %9s %6s\n", "work", "rows", "ms", "quartiles",
           "tok/s", "GB/s", "GMAC/s", "of limit", "bound", "experts", "n");
}

static void print_json(const struct moge_bench *bench, const struct moge_bench_work *work,
                       const struct moge_bench_cost *cost, const struct line *line) {
    const double *limit = bench->limits.of;
    printf("{\"work\":\"%s\",\"rows\":%d,\"ms_median\":%.4f,\"ms_q1\":%.4f,\"ms_q3\":%.4f,"
           "\"ms_min\":%.4f,\"ms_max\":%.4f,\"repeats\":%d,\"tok_s\":%.2f,\"gb_s\":%.6g,"
           "\"gmac_s\":%.3f,\"experts\":%.1f,\"weight_mb\":%.3f,\"kv_mb\":%.3f,\"depth\":%d,"
           "\"threads\":%d,\"isa\":\"%s\",\"weights\":\"%s\",\"kv\":\"%s\",\"load_ms\":%.1f,",
           work->name, work->n_seqs * work->n_rows, line->median, line->q1, line->q3, bench->ms[0],
           bench->ms[bench->n_ms - 1], bench->n_ms, line->tok_s, line->gb_s, line->gmac_s,
           cost->experts, cost->weight_bytes / 1e6, cost->kv_bytes / 1e6, work->pos,
           bench->n_threads, moge_kernels()->isa, moge_model_info(bench->model)->weights,
           moge_bench_kv_names[bench->kv_type], bench->load_ms);
    printf("\"limit_gb_s\":%.2f,\"limit_i8_gmac_s\":%.1f,\"limit_i4_gmac_s\":%.1f,"
           "\"limit_f32_gmac_s\":%.1f,\"limit_bytes_ms\":%.4f,\"limit_macs_ms\":%.4f,"
           "\"bound\":\"%s\",\"fraction\":%.4f}\n",
           limit[MOGE_LIMIT_READ], limit[MOGE_LIMIT_I8], limit[MOGE_LIMIT_I4],
           limit[MOGE_LIMIT_F32], line->bytes_ms, line->macs_ms, line->bound, line->fraction);
}

static void print_csv(const struct moge_bench *bench, const struct moge_bench_work *work,
                      const struct line *line) {
    const double *limit = bench->limits.of;
    const struct moge_model_info *info = moge_model_info(bench->model);
    fprintf(bench->csv, "%s,%s,%s,%s,%s,%d,%s,%d,%d,%d,%.3f,%.3f,%.3f,%.2f,%.2f,%.2f,",
            bench->machine, bench->commit, info->name, info->weights, moge_kernels()->isa,
            bench->n_threads, work->name, work->n_seqs * work->n_rows, work->pos, bench->n_ms,
            line->median, line->q1, line->q3, line->tok_s, line->gb_s, line->gmac_s);
    fprintf(bench->csv, "%.2f,%.1f,%.1f,%.1f,%s,%.3f,%s\n", limit[MOGE_LIMIT_READ],
            limit[MOGE_LIMIT_I8], limit[MOGE_LIMIT_I4], limit[MOGE_LIMIT_F32], line->bound,
            line->fraction, moge_bench_kv_names[bench->kv_type]);
    fflush(bench->csv);
}

void moge_bench_report(const struct moge_bench *bench, const struct moge_bench_work *work,
                       const struct moge_bench_cost *cost) {
    struct line line = line_of(bench, work, cost);
    if (bench->json)
        print_json(bench, work, cost, &line);
    else
        printf("%-8s %5d %10.3f %9.3f..%-9.3f %9.1f %7.2f %8.1f %7.0f%% %10s %9.0f %6d\n",
               work->name, work->n_seqs * work->n_rows, line.median, line.q1, line.q3, line.tok_s,
               line.gb_s, line.gmac_s, 100 * line.fraction, line.bound, cost->experts, bench->n_ms);
    fflush(stdout);
    if (bench->csv)
        print_csv(bench, work, &line);
}

int moge_bench_csv_open(struct moge_bench *bench, struct moge_err *err) {
    bench->csv = fopen(bench->csv_path, "a");
    if (!bench->csv)
        return moge_fail(err, MOGE_IO, "cannot write %s: %s", bench->csv_path, strerror(errno));
    if (fseek(bench->csv, 0, SEEK_END) != 0)
        return moge_fail(err, MOGE_IO, "%s is no file to append to", bench->csv_path);
    if (ftell(bench->csv) == 0)
        fputs("machine,commit,model,weights,isa,threads,work,rows,depth,repeats,ms,ms_q1,ms_q3,"
              "tok_s,gb_s,gmac_s,limit_gb_s,limit_i8_gmac_s,limit_i4_gmac_s,limit_f32_gmac_s,"
              "bound,fraction,kv\n",
              bench->csv);
    return 0;
}
