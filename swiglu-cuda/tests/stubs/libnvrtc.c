/* An NVRTC that answers what its macros say. Its "machine code" is what it was given, so that a test can read it.
   It refuses a source with the word "refuse". WITHOUT_CUBIN leaves out one function. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION_CODE
#define VERSION_CODE 0
#endif
#ifndef ARCHITECTURES
#define ARCHITECTURES 75, 80, 90, 120
#endif
#ifndef CREATE_CODE
#define CREATE_CODE 0
#endif
#ifndef CUBIN_CODE
#define CUBIN_CODE 0
#endif

static const int architectures[] = {ARCHITECTURES};
enum { COUNT = sizeof architectures / sizeof architectures[0], ROOM = 1 << 18, COMPILATION = 6 };

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

/* Programs that were created and not destroyed. */
static int live;

struct program {
    int refused;
    char log[64];
    size_t size;
    char cubin[ROOM];
};

static void append(struct program *p, const char *text) {
    p->size += (size_t)snprintf(p->cubin + p->size, ROOM - p->size, "%s\n", text);
}

int nvrtcCreateProgram(struct program **made, const char *text, const char *name, int count, const char *const *texts,
                       const char *const *names) {
    if (CREATE_CODE) return CREATE_CODE;
    struct program *p = calloc(1, sizeof *p);
    live++;
    append(p, name);
    append(p, text);
    for (int i = 0; i < count; i++) append(p, names[i]), append(p, texts[i]);
    p->refused = strstr(text, "refuse") != NULL;
    *made = p;
    return 0;
}

int nvrtcCompileProgram(struct program *p, int count, const char *const *options) {
    for (int i = 0; i < count; i++) append(p, options[i]);
    snprintf(p->log, sizeof p->log, "%d live\nsecond line\n", live);
    return p->refused ? COMPILATION : 0;
}

int nvrtcGetCUBINSize(struct program *p, size_t *size) {
#ifdef EMPTY_CUBIN
    p->size = 0;
#endif
    *size = p->size;
    return 0;
}

#ifndef WITHOUT_CUBIN
int nvrtcGetCUBIN(struct program *p, char *cubin) {
    memcpy(cubin, p->cubin, p->size);
    return CUBIN_CODE;
}
#endif

int nvrtcGetProgramLogSize(struct program *p, size_t *size) {
    *size = strlen(p->log) + 1;
    return 0;
}

int nvrtcGetProgramLog(struct program *p, char *log) {
    strcpy(log, p->log);
    return 0;
}

int nvrtcDestroyProgram(struct program **p) {
    live--;
    free(*p);
    *p = NULL;
    return 0;
}

const char *nvrtcGetErrorString(int code) {
    return code == COMPILATION ? "STUB_COMPILATION" : code == 2 ? "STUB_CREATION" : NULL;
}
