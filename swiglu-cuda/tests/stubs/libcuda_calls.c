/* A libcuda that takes every call of the backend and does nothing: what is left of a call's time is the caller's.
   Device memory is host memory that nobody accesses. */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long u64;
typedef __SIZE_TYPE__ size;

static void *current;
static int context, anything;

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int room, int device) { strncpy(name, "Stub GPU", (size)room); return device; }
int cuDeviceTotalMem_v2(size *bytes, int device) { *bytes = (size)1 << 36; return device; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 16: *value = 132; break;          /* multiprocessors */
        case 75: *value = 9; break;            /* compute capability */
        case 76: *value = 0; break;
        case 97: *value = 227 * 1024; break;   /* shared memory of a block */
        default: *value = 1;
    }
    return device;
}

int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device; }
int cuCtxGetCurrent(void **which) { *which = current; return 0; }
int cuCtxSetCurrent(void *which) { current = which; return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuGetErrorName(int code, const char **name) { *name = "STUB"; return code * 0; }
int cuGetErrorString(int code, const char **text) { *text = "stub"; return code * 0; }
int cuMemGetInfo_v2(size *available, size *total) { *available = *total = (size)1 << 36; return 0; }

/* Addresses that nobody reads: 256-byte aligned, in ascending order. */
static u64 next = 1ull << 40;
int cuMemAlloc_v2(u64 *address, size bytes) {
    *address = next;
    next += (bytes + 511) / 256 * 256;
    return 0;
}
int cuMemAllocAsync(u64 *address, size bytes, void *stream) { return stream ? cuMemAlloc_v2(address, bytes) : 1; }
int cuMemFree_v2(u64 address) { return address == 0; }
int cuMemFreeAsync(u64 address, void *stream) { return address == 0 || !stream; }
int cuMemAllocHost_v2(void **memory, size bytes) { *memory = malloc(bytes); return *memory ? 0 : 2; }
int cuMemFreeHost(void *memory) { free(memory); return 0; }

int cuMemsetD8Async(u64 address, unsigned char value, size bytes, void *stream) { return !stream; }
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size bytes, void *stream) { return !stream; }
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size bytes, void *stream) { return !stream; }
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size bytes, void *stream) { return !stream; }
int cuMemcpy2DAsync_v2(const void *copy, void *stream) { return !stream; }

int cuStreamCreate(void **made, unsigned flags) { *made = &anything; return flags * 0; }
int cuStreamDestroy_v2(void *stream) { return !stream; }
int cuStreamSynchronize(void *stream) { return !stream; }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return !stream; }
int cuStreamBeginCapture_v2(void *stream, int mode) { return !stream; }
int cuStreamEndCapture(void *stream, void **graph) { *graph = &anything; return 0; }
int cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cuEventCreate(void **made, unsigned flags) { *made = &anything; return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventQuery(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *from, void *to) { *ms = 1; return 0; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { *ms = 1; return 0; }
int cuEventDestroy_v2(void *event) { return 0; }

int cuModuleLoadData(void **made, const void *image) { *made = &anything; return !image; }
int cuModuleGetFunction(void **made, void *module, const char *name) { *made = &anything; return !name; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return !function; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 0; return !function; }

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, void **params, void **extra) {
    return !function || !stream || !x || !y || !z || !tx || ty != 1 || tz != 1 || !params || extra;
}

struct config { unsigned grid[3], block[3], shared; void *stream; void *attributes; unsigned count; };
int cuLaunchKernelEx(const struct config *config, void *function, void **params, void **extra) {
    return !function || !config->stream || !config->grid[0] || !config->block[0] || !params || extra;
}

int cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *at, const u64 *dims, const u64 *strides,
                           const unsigned *box, const unsigned *steps, int interleave, int swizzle, int promotion,
                           int fill) {
    memset(map, 1, 128);
    return rank != 2 || !at;
}

int cuGraphInstantiateWithFlags(void **made, void *graph, u64 flags) { *made = &anything; return 0; }
int cuGraphLaunch(void *graph, void *stream) { return !stream; }
int cuGraphUpload(void *graph, void *stream) { return !stream; }
int cuGraphDestroy(void *graph) { return 0; }
int cuGraphExecDestroy(void *graph) { return 0; }
