/* A libcuda that answers what its macros say. EMPTY leaves out every function, WITHOUT_MEMORY one. */
#ifndef EMPTY

#ifndef VERSION
#define VERSION 12080
#endif
#ifndef VERSION_CODE
#define VERSION_CODE 0
#endif
#ifndef INIT_CODE
#define INIT_CODE 0
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef MAJOR
#define MAJOR 9
#endif
#ifndef MINOR
#define MINOR 0
#endif

/* Lives as long as the library stays loaded: COUNT may be set to it. */
static int initialised;

int cuInit(unsigned flags) {
    initialised += 1;
    return flags == 0 ? INIT_CODE : 1;
}

int cuDriverGetVersion(int *version) {
    *version = VERSION;
    return VERSION_CODE;
}

int cuDeviceGetCount(int *count) {
    *count = COUNT;
    return initialised ? 0 : 3;
}

/* A handle is not the ordinal: mixing them up shows. */
int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal + 1000;
    return ordinal < COUNT ? 0 : 101;
}

int cuDeviceGetName(char *name, int room, int device) {
#ifdef ENDLESS_NAME
    for (int i = 0; i < room; i++) name[i] = 'x';
#else
    const char *text = "Stub GPU";
    int i = 0;
    for (; text[i] && i + 1 < room; i++) name[i] = text[i];
    name[i] = 0;
#endif
    return device >= 1000 ? 0 : 101;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute != 75 && attribute != 76) return 1;
    *value = attribute == 75 ? MAJOR : MINOR;
    return device >= 1000 ? 0 : 101;
}

#ifndef WITHOUT_MEMORY
int cuDeviceTotalMem_v2(__SIZE_TYPE__ *bytes, int device) {
    *bytes = (__SIZE_TYPE__)(device - 999) << 33;
    return device >= 1000 ? 0 : 101;
}
#endif

#endif
