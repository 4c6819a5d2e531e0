// MLX multiplies everything with cblas_sgemm, and OpenBLAS's sgemm first copies the whole matrix into its own order: for
// one row or one column that takes two to four times as long as the product. Its sgemv reads the matrix once, where it
// lies; newer releases hand such products over themselves on some processors.

#include <algorithm>
#include <dlfcn.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

// From LARGE numbers on, up to FEW_ROWS rows are done one by one against a block of the matrix, of which every thread has
// its share in its core's cache for all the rows.
constexpr int FEW_ROWS = 8, LARGE = 100'000, BLOCK = 240'000;

using Gemm = void (*)(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
using Gemv = void (*)(int, int, int, int, float, const float*, int, const float*, int, float, float*, int);

static Gemm gemm;
static Gemv gemv;

__attribute__((constructor)) static void find() {
    // Not into the global scope: there this file's cblas_sgemm has to come first.
    void* openblas = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    gemm = reinterpret_cast<Gemm>(dlsym(openblas, "cblas_sgemm"));
    gemv = reinterpret_cast<Gemv>(dlsym(openblas, "cblas_sgemv"));
}

// The matrix is the factor that is not a vector: `rows` x `columns` as it lies in memory, or that transposed.
static void product(
    int trans, int rows, int columns, float alpha, const float* matrix, int ld, const float* vector, int step, float beta,
    float* result, int result_step) {
    if (beta == 0.0f) {
        // Whatever lies there, a NaN even, must not be multiplied by 0.
        const int n = trans == NO_TRANS ? rows : columns;
        for (int i = 0; i < n; ++i) result[long{i} * result_step] = 0.0f;
    }
    gemv(ROW_MAJOR, trans, rows, columns, alpha, matrix, ld, vector, step, beta, result, result_step);
}

extern "C" void cblas_sgemm(
    int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
    int ldb, float beta, float* c, int ldc) {
    if (order == ROW_MAJOR && m == 1) {
        const bool turned = trans_b == NO_TRANS;
        product(
            turned ? TRANS : NO_TRANS, turned ? k : n, turned ? n : k, alpha, b, ldb, a, trans_a == NO_TRANS ? 1 : lda,
            beta, c, 1);
    } else if (order == ROW_MAJOR && n == 1) {
        const bool turned = trans_a != NO_TRANS;
        product(
            turned ? TRANS : NO_TRANS, turned ? k : m, turned ? m : k, alpha, a, lda, b, trans_b == NO_TRANS ? ldb : 1,
            beta, c, ldc);
    } else if (
        order == ROW_MAJOR && trans_a == NO_TRANS && trans_b == TRANS && m <= FEW_ROWS && long{n} * k >= LARGE &&
        k <= BLOCK) {
        const int step = BLOCK / k;
        for (int first = 0; first < n; first += step)
            for (int row = 0; row < m; ++row)
                product(
                    NO_TRANS, std::min(step, n - first), k, alpha, b + long{first} * ldb, ldb, a + long{row} * lda, 1,
                    beta, c + long{row} * ldc + first, 1);
    } else {
        gemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    }
}
