/* An NVRTC that answers what its macros say and compiles nothing. WITHOUT_CUBIN leaves out one function. */
#ifndef VERSION_CODE
#define VERSION_CODE 0
#endif
#ifndef ARCHITECTURES
#define ARCHITECTURES 75, 80, 90, 120
#endif

static const int architectures[] = {ARCHITECTURES};
enum { COUNT = sizeof architectures / sizeof architectures[0] };

int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 9;
    return VERSION_CODE;
}

int nvrtcGetNumSupportedArchs(int *count) {
    *count = COUNT;
    return 0;
}

int nvrtcGetSupportedArchs(int *list) {
    for (int i = 0; i < COUNT; i++) list[i] = architectures[i];
    return 0;
}

/* Looked for and never called. */
int nvrtcCreateProgram(void) { return 9; }
int nvrtcCompileProgram(void) { return 9; }
int nvrtcGetCUBINSize(void) { return 9; }
#ifndef WITHOUT_CUBIN
int nvrtcGetCUBIN(void) { return 9; }
#endif
int nvrtcGetProgramLog(void) { return 9; }
