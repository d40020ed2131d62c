/* A cuBLAS on the host: products of f32 by the definition, column by column, on addresses of host memory. A handle must
   have been given the mode, the stream and the workspace that the crate promises, in an order that lasts.
   ONLY_NARROW leaves out the product with 64-bit numbers, WITHOUT_GEMM the other one, WITHOUT_WORKSPACE another function.
   No more than one handle is made at a time. */
#include <stddef.h>
#include <stdint.h>

#ifndef CREATE_CODE
#define CREATE_CODE 0
#endif
#ifndef GEMM_CODE
#define GEMM_CODE 0
#endif

enum { NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { STREAM = 7, WORKSPACE = 4096, BYTES = 1024, MODE = 16 };

struct handle {
    int live, mode;
    uintptr_t stream, workspace;
};

static struct handle only;

int cublasGetProperty(int which, int *value) {
    if (which < 0 || which > 2) return INVALID_VALUE;
    *value = which == 0 ? 12 : which == 1 ? 9 : 1;
    return 0;
}

int cublasCreate_v2(struct handle **made) {
    if (CREATE_CODE) return CREATE_CODE;
    if (only.live) return ALLOC_FAILED;
    only = (struct handle){.live = 1};
    *made = &only;
    return 0;
}

int cublasDestroy_v2(struct handle *h) {
    if (!h->live) return NOT_INITIALIZED;
    h->live = 0;
    return 0;
}

int cublasSetMathMode(struct handle *h, int mode) {
    h->mode = mode;
    return 0;
}

int cublasSetStream_v2(struct handle *h, void *stream) {
    h->stream = (uintptr_t)stream;
    h->workspace = 0;
    return 0;
}

#ifndef WITHOUT_WORKSPACE
int cublasSetWorkspace_v2(struct handle *h, void *workspace, size_t bytes) {
    if ((uintptr_t)workspace % 256 || bytes != BYTES) return INVALID_VALUE;
    h->workspace = (uintptr_t)workspace;
    return 0;
}
#endif

static int gemm(struct handle *h, int transa, int transb, int64_t m, int64_t n, int64_t k, const void *alpha,
                const void *a_start, int atype, int64_t lda, const void *b_start, int btype, int64_t ldb,
                const void *beta, void *c_start, int ctype, int64_t ldc, int compute, int algorithm) {
    if (GEMM_CODE) return GEMM_CODE;
    if (!h->live || h->mode != MODE || h->stream != STREAM || h->workspace != WORKSPACE) return NOT_INITIALIZED;
    if (atype || btype || ctype || (compute != 68 && compute != 77) || algorithm != -1) return NOT_SUPPORTED;
    if (transa < 0 || transa > 1 || transb < 0 || transb > 1 || m < 0 || n < 0 || k < 0) return INVALID_VALUE;
    int64_t arows = transa ? k : m, brows = transb ? n : k;
    if (lda < (arows > 1 ? arows : 1) || ldb < (brows > 1 ? brows : 1) || ldc < (m > 1 ? m : 1)) return INVALID_VALUE;
    const float *a = a_start, *b = b_start;
    float *c = c_start, scale = *(const float *)alpha, old = *(const float *)beta;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (transa ? a[p + i * lda] : a[i + p * lda]) * (transb ? b[j + p * ldb] : b[p + j * ldb]);
            float *to = c + i + j * ldc;
            *to = scale * sum + (old == 0 ? 0 : old * *to);
        }
    return 0;
}

#ifndef ONLY_NARROW
int cublasGemmEx_64(struct handle *h, int transa, int transb, int64_t m, int64_t n, int64_t k, const void *alpha,
                    const void *a, int atype, int64_t lda, const void *b, int btype, int64_t ldb, const void *beta,
                    void *c, int ctype, int64_t ldc, int compute, int algorithm) {
    return gemm(h, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute,
                algorithm);
}
#endif

#ifndef WITHOUT_GEMM
int cublasGemmEx(struct handle *h, int transa, int transb, int m, int n, int k, const void *alpha, const void *a,
                 int atype, int lda, const void *b, int btype, int ldb, const void *beta, void *c, int ctype, int ldc,
                 int compute, int algorithm) {
    return gemm(h, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute,
                algorithm);
}
#endif

const char *cublasGetStatusName(int code) {
    if (code == ALLOC_FAILED) return "CUBLAS_STATUS_ALLOC_FAILED";
    return code == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : NULL;
}

const char *cublasGetStatusString(int code) {
    return code == NOT_SUPPORTED ? "stub of a description" : NULL;
}
