/* A libnvidia-ml.so.1 without a GPU: answers what a file says, so that a test can change the machine meanwhile.
 *
 * The file is named by FAKE_NVML_STATE and read anew at every call; see tests/nvml/__init__.py for what it holds.
 * Signatures and sizes are those of NVIDIA's nvml.h as nvidia-ml-py (13.615) calls them.
 * A value that the file does not have is NOT_SUPPORTED; a value "!15" makes that one question fail with 15.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15,
};
enum { STATE_MAX = 1 << 20, VALUE_MAX = 256, DEVICES_MAX = 4096, WATCHED_MAX = 256, POLL_US = 10000 };

typedef unsigned long long u64;
typedef struct { char uuid[96]; } *Device;
typedef struct { char bus_id_legacy[16]; unsigned domain, bus, device, device_id, subsystem; char bus_id[32]; } Pci;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct { unsigned field, scope; long long at, latency; int type, status; union { u64 whole; double real; } value; } Field;
typedef struct { Device device; u64 type, data; unsigned gpu_instance, compute_instance; } Event;
typedef struct { Device watched[WATCHED_MAX]; u64 masks[WATCHED_MAX]; int count; u64 seen; } *EventSet;
typedef struct { unsigned version; int sensor, celsius; } TemperatureV1;
typedef struct { unsigned version; u64 counts[11]; unsigned is_exceeded; } Sram;
typedef struct { unsigned version; unsigned char cluster[16]; int status; unsigned clique; unsigned char state; unsigned mask; } Fabric;
typedef struct { unsigned version, id, unused[2], instances; } Profile;  /* As far as we fill it; the same places for both kinds. */
typedef struct { char uuid[96]; unsigned gpu_instance; int compute_instance; } *Part;
typedef struct { unsigned multiprocessors, ce, dec, enc, jpeg, ofa, gpu_slices, compute_slices; u64 memory_mib; } Attributes;

/* One per UUID for ever: a handle outlives the GPU that it names, as NVIDIA's do. */
static char known[DEVICES_MAX][96];

/* ---- the file ---- */

static __thread char text[STATE_MAX];

static int read_state(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    size_t length = fread(text, 1, STATE_MAX - 1, file);
    fclose(file);
    text[length] = 0;
    return 1;
}

/* Copy what follows `prefix` on the first line (from *cursor on) that begins with it; move *cursor behind that line. */
static int line_after(const char **cursor, const char *prefix, char *value) {
    size_t length = strlen(prefix);
    for (const char *line = *cursor; *line;) {
        const char *end = strchr(line, '\n');
        size_t size = end ? (size_t)(end - line) : strlen(line);
        *cursor = end ? end + 1 : line + size;
        if (size >= length && !strncmp(line, prefix, length)) {
            size_t rest = size - length < VALUE_MAX - 1 ? size - length : VALUE_MAX - 1;
            memcpy(value, line + length, rest);
            value[rest] = 0;
            return 1;
        }
        line = *cursor;
    }
    return 0;
}

static int look_up(const char *prefix, char *value) {
    const char *cursor = text;
    return line_after(&cursor, prefix, value);
}

/* Read the file, wait while the driver hangs, and answer what the driver as a whole answers. */
static int driver(void) {
    char value[VALUE_MAX];
    for (;;) {
        if (!read_state()) return DRIVER_NOT_LOADED;
        if (!look_up("driver hang ", value) || atoi(value) == 0) break;
        usleep(POLL_US);
    }
    return look_up("driver error ", value) ? atoi(value) : SUCCESS;
}

/* ---- devices: place is "0", or "0.1" for the second MIG device of the first GPU ---- */

static int is_visible(const char *place) {
    /* In a container only GPUs whose device node was put there can be seen. */
    const char *folder = getenv("FAKE_NVML_DEV");
    char prefix[VALUE_MAX], minor[VALUE_MAX], node[4 * VALUE_MAX];
    if (!folder || !*folder || strchr(place, '.')) return 1;
    snprintf(prefix, sizeof prefix, "gpu %s minor_number ", place);
    if (!look_up(prefix, minor)) return 0;
    snprintf(node, sizeof node, "%s/nvidia%s", folder, minor);
    return access(node, F_OK) == 0;
}

static int uuid_at(const char *place, char *uuid) {
    char prefix[VALUE_MAX];
    snprintf(prefix, sizeof prefix, "gpu %s uuid ", place);
    return look_up(prefix, uuid);
}

/* Write the place of the n-th GPU that can be seen. */
static int nth_place(unsigned wanted, char *place) {
    char uuid[VALUE_MAX];
    unsigned seen = 0;
    for (int number = 0;; number++) {
        snprintf(place, 32, "%d", number);
        if (!uuid_at(place, uuid)) return 0;
        if (is_visible(place) && seen++ == wanted) return 1;
    }
}

static Device device_named(const char *uuid) {
    for (int i = 0; i < DEVICES_MAX; i++) {
        if (!known[i][0]) snprintf(known[i], sizeof known[i], "%.95s", uuid);
        if (!strcmp(known[i], uuid)) return (Device)known[i];
    }
    return NULL;
}

static int place_of(Device device, char *place) {
    const char *cursor = text;
    char value[VALUE_MAX], key[32], uuid[VALUE_MAX];
    while (line_after(&cursor, "gpu ", value))
        if (sscanf(value, "%31s %31s %255s", place, key, uuid) == 3 && !strcmp(key, "uuid") && !strcmp(uuid, device->uuid))
            return is_visible(place);
    return 0;
}

static int failure_of(const char *place) {
    char prefix[VALUE_MAX], value[VALUE_MAX];
    snprintf(prefix, sizeof prefix, "gpu %s error ", place);
    return look_up(prefix, value) ? atoi(value) : SUCCESS;
}

/* Find what the file says of one device; the code that the question answers with. */
static int ask(Device device, const char *key, char *value) {
    char place[32], prefix[VALUE_MAX];
    int status = driver();
    if (status) return status;
    if (!device) return INVALID_ARGUMENT;
    if (!place_of(device, place)) return GPU_IS_LOST;
    if ((status = failure_of(place))) return status;
    snprintf(prefix, sizeof prefix, "gpu %s %s ", place, key);
    if (!look_up(prefix, value)) return NOT_SUPPORTED;
    return value[0] == '!' ? atoi(value + 1) : SUCCESS;
}

static int ask_text(Device device, const char *key, char *answer, unsigned size) {
    char value[VALUE_MAX];
    int status = ask(device, key, value);
    if (status) return status;
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(answer, value);
    return SUCCESS;
}

static int ask_number(Device device, const char *key, u64 *answer) {
    char value[VALUE_MAX];
    int status = ask(device, key, value);
    if (!status) *answer = strtoull(value, NULL, 10);
    return status;
}

static int ask_unsigned(Device device, const char *key, unsigned *answer) {
    u64 number = 0;
    int status = ask_number(device, key, &number);
    if (!status) *answer = (unsigned)number;
    return status;
}

static int ask_numbered(Device device, const char *key, unsigned number, unsigned *answer) {
    char name[64];
    snprintf(name, sizeof name, "%s.%u", key, number);
    return ask_unsigned(device, name, answer);
}

static int handle_at(const char *place, Device *device) {
    char uuid[VALUE_MAX];
    int status = failure_of(place);
    if (status) return status;
    if (!uuid_at(place, uuid)) return NOT_FOUND;
    *device = device_named(uuid);
    return SUCCESS;
}

/* Find the GPU whose `key` has this value. */
static int handle_with(const char *key, const char *wanted, Device *device) {
    const char *cursor;
    char line[VALUE_MAX], place[32], found[32], value[VALUE_MAX];
    int status = driver();
    if (status) return status;
    cursor = text;
    while (line_after(&cursor, "gpu ", line))
        if (sscanf(line, "%31s %31s %255s", place, found, value) == 3 && !strcmp(found, key) && !strcasecmp(value, wanted))
            return is_visible(place) ? handle_at(place, device) : NOT_FOUND;
    return NOT_FOUND;
}

static void fill_pci(const char *bus_id, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    sscanf(bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%.31s", bus_id);
    snprintf(pci->bus_id_legacy, sizeof pci->bus_id_legacy, "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
}

/* ---- the driver as a whole ---- */

int nvmlInitWithFlags(unsigned flags) { (void)flags; return driver(); }
int nvmlInit_v2(void) { return driver(); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { (void)code; return "an error of the pretended NVML"; }

static int system_text(const char *prefix, char *answer, unsigned size) {
    char value[VALUE_MAX];
    int status = driver();
    if (status) return status;
    if (!look_up(prefix, value)) return NOT_SUPPORTED;
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(answer, value);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *answer, unsigned size) { return system_text("driver version ", answer, size); }
int nvmlSystemGetNVMLVersion(char *answer, unsigned size) { return system_text("driver nvml ", answer, size); }

int nvmlSystemGetCudaDriverVersion(int *answer) {
    char value[VALUE_MAX];
    int status = system_text("driver cuda ", value, sizeof value);
    if (!status) *answer = atoi(value);
    return status;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char place[32];
    int status = driver();
    if (status) return status;
    for (*count = 0; nth_place(*count, place); ++*count) {}
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    char place[32];
    int status = driver();
    if (status) return status;
    return nth_place(index, place) ? handle_at(place, device) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) { return handle_with("uuid", uuid, device); }
int nvmlDeviceGetHandleBySerial(const char *serial, Device *device) { return handle_with("serial", serial, device); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device *device) { return handle_with("pci_bus_id", bus_id, device); }

/* ---- what one GPU is ---- */

#define TEXT(function, key) \
    int function(Device device, char *answer, unsigned size) { return ask_text(device, key, answer, size); }
#define NUMBER(function, key) \
    int function(Device device, unsigned *answer) { return ask_unsigned(device, key, answer); }
#define NUMBERED(function, key) \
    int function(Device device, unsigned which, unsigned *answer) { return ask_numbered(device, key, which, answer); }

TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetBoardPartNumber, "board_part_number")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
NUMBER(nvmlDeviceGetMinorNumber, "minor_number")
NUMBER(nvmlDeviceGetModuleId, "module_id")
NUMBER(nvmlDeviceGetNumaNodeId, "numa_node")
NUMBER(nvmlDeviceGetArchitecture, "architecture")
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_max_generation")
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "pcie_max_width")
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
NUMBER(nvmlDeviceGetComputeMode, "compute_mode")
NUMBER(nvmlDeviceGetPersistenceMode, "persistence_mode")
NUMBER(nvmlDeviceGetMaxMigDeviceCount, "mig_max")
NUMBER(nvmlDeviceGetGpuInstanceId, "gpu_instance")
NUMBER(nvmlDeviceGetComputeInstanceId, "compute_instance")

int nvmlDeviceGetIndex(Device device, unsigned *index) {
    char uuid[VALUE_MAX], place[32];
    Device other;
    int status = ask_text(device, "uuid", uuid, sizeof uuid);
    if (status) return status;
    for (*index = 0; nth_place(*index, place); ++*index)
        if (!handle_at(place, &other) && other == device) return SUCCESS;
    return NOT_FOUND;
}

int nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    char value[VALUE_MAX];
    int status = ask(device, "pci_bus_id", value);
    if (!status) fill_pci(value, pci);
    return status;
}

static int ask_pair(Device device, const char *key, unsigned *current, unsigned *pending) {
    char value[VALUE_MAX];
    int status = ask(device, key, value);
    if (!status && sscanf(value, "%u %u", current, pending) == 1) *pending = *current;
    return status;
}

int nvmlDeviceGetMigMode(Device device, unsigned *current, unsigned *pending) { return ask_pair(device, "mig_mode", current, pending); }
int nvmlDeviceGetEccMode(Device device, unsigned *current, unsigned *pending) { return ask_pair(device, "ecc_mode", current, pending); }

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned index, Device *mig) {
    char uuid[VALUE_MAX], place[32], child[64];
    int status = ask_text(device, "uuid", uuid, sizeof uuid);
    if (status) return status;
    place_of(device, place);
    snprintf(child, sizeof child, "%s.%u", place, index);
    return handle_at(child, mig);
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device mig, Device *device) {
    char uuid[VALUE_MAX], place[32];
    int status = ask_text(mig, "uuid", uuid, sizeof uuid);
    if (status) return status;
    if (!place_of(mig, place) || !strchr(place, '.')) return INVALID_ARGUMENT;
    *strchr(place, '.') = 0;
    return handle_at(place, device);
}

int nvmlDeviceIsMigDeviceHandle(Device device, unsigned *answer) {
    char uuid[VALUE_MAX], place[32];
    int status = ask_text(device, "uuid", uuid, sizeof uuid);
    if (!status) *answer = place_of(device, place) && strchr(place, '.');
    return status;
}

int nvmlDeviceGetAttributes_v2(Device device, Attributes *attributes) {
    char value[VALUE_MAX];
    int status = ask(device, "attributes", value);
    memset(attributes, 0, sizeof *attributes);
    if (!status) sscanf(value, "%u %u %u %llu", &attributes->multiprocessors, &attributes->gpu_slices, &attributes->compute_slices, &attributes->memory_mib);
    return status;
}

/* ---- MIG: lines "gpu 0 gi.3 PROFILE" and "gpu 0 ci.3.0 PROFILE"; a code behind the profile is how destroying it fails ---- */

enum { PARTS_MAX = 256, PROFILES = 5, INSTANCES_MAX = 7, ID_OF_PROFILE = 100, IN_USE = 19 };

static struct { char uuid[96]; unsigned gpu_instance; int compute_instance; } parts[PARTS_MAX];

static Part part_named(const char *uuid, unsigned gpu_instance, int compute_instance) {
    for (int i = 0; i < PARTS_MAX; i++) {
        if (!parts[i].uuid[0]) {
            snprintf(parts[i].uuid, sizeof parts[i].uuid, "%.95s", uuid);
            parts[i].gpu_instance = gpu_instance;
            parts[i].compute_instance = compute_instance;
        }
        if (!strcmp(parts[i].uuid, uuid) && parts[i].gpu_instance == gpu_instance && parts[i].compute_instance == compute_instance)
            return (Part)&parts[i];
    }
    return NULL;
}

static int is_cut(Device device) {
    unsigned current = 0, pending;
    return !ask_pair(device, "mig_mode", &current, &pending) && current;
}

/* List the parts of a GPU (of one of its parts) that have this profile; -1 counts all. */
static int list_parts(Device device, const char *prefix, int profile, int within, unsigned *count, Part *found) {
    char place[32], start[VALUE_MAX], value[VALUE_MAX];
    const char *cursor = text;
    unsigned number, room = *count;
    int kind, status = driver();
    *count = 0;
    if (status) return status;
    if (!place_of(device, place)) return GPU_IS_LOST;
    snprintf(start, sizeof start, "gpu %s %s", place, prefix);
    while (line_after(&cursor, start, value)) {
        if (sscanf(value, "%u %d", &number, &kind) != 2 || (profile >= 0 && kind != profile)) continue;
        if (found && *count == room) return INSUFFICIENT_SIZE;
        if (found) found[*count] = within < 0 ? part_named(device->uuid, number, -1) : part_named(device->uuid, (unsigned)within, (int)number);
        ++*count;
    }
    return SUCCESS;
}

static int fill_profile(unsigned profile, Profile *info) {
    if (profile >= PROFILES) return NOT_SUPPORTED;
    info->id = ID_OF_PROFILE + profile;
    info->instances = INSTANCES_MAX;
    return SUCCESS;
}

/* Take a line out of the file. */
static int destroy(Part part) {
    char place[32], key[64], start[VALUE_MAX], value[VALUE_MAX], path[4 * VALUE_MAX];
    int kind, failure = 0, status = driver();
    if (status) return status;
    if (!place_of((Device)part, place)) return GPU_IS_LOST;
    if (part->compute_instance < 0) snprintf(key, sizeof key, "gi.%u", part->gpu_instance);
    else snprintf(key, sizeof key, "ci.%u.%d", part->gpu_instance, part->compute_instance);
    snprintf(start, sizeof start, "gpu %s %s ", place, key);
    if (!look_up(start, value)) return NOT_FOUND;
    if (sscanf(value, "%d %d", &kind, &failure) == 2 && failure) return failure > 0 ? failure : SUCCESS;
    char *line = strstr(text, start), *end = strchr(line, '\n');
    memmove(line, end + 1, strlen(end + 1) + 1);
    snprintf(path, sizeof path, "%s.new", getenv("FAKE_NVML_STATE"));
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
    return rename(path, getenv("FAKE_NVML_STATE")) ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetGpuInstanceProfileInfoV(Device device, unsigned profile, Profile *info) { return is_cut(device) ? fill_profile(profile, info) : NOT_SUPPORTED; }

int nvmlDeviceGetGpuInstances(Device device, unsigned id, Part *found, unsigned *count) {
    return is_cut(device) ? list_parts(device, "gi.", (int)id - ID_OF_PROFILE, -1, count, found) : NOT_SUPPORTED;
}

int nvmlGpuInstanceGetComputeInstanceProfileInfoV(Part part, unsigned profile, unsigned engines, Profile *info) {
    (void)part;
    if (engines || profile >= PROFILES) return NOT_SUPPORTED;
    /* This kind of profile has no word about peers: its numbers stand one place earlier. */
    info->id = ID_OF_PROFILE + profile;
    info->unused[1] = INSTANCES_MAX;
    return SUCCESS;
}

int nvmlGpuInstanceGetComputeInstances(Part part, unsigned id, Part *found, unsigned *count) {
    char prefix[32];
    snprintf(prefix, sizeof prefix, "ci.%u.", part->gpu_instance);
    return list_parts((Device)part, prefix, (int)id - ID_OF_PROFILE, (int)part->gpu_instance, count, found);
}

int nvmlComputeInstanceDestroy(Part part) { return destroy(part); }

int nvmlGpuInstanceDestroy(Part part) {
    char prefix[32];
    unsigned inner = 0;
    snprintf(prefix, sizeof prefix, "ci.%u.", part->gpu_instance);
    int status = list_parts((Device)part, prefix, -1, (int)part->gpu_instance, &inner, NULL);
    return status ? status : inner ? IN_USE : destroy(part);
}

/* ---- meters ---- */

NUMBER(nvmlDeviceGetPowerUsage, "power_mw")
NUMBER(nvmlDeviceGetEnforcedPowerLimit, "power_limit_mw")
NUMBER(nvmlDeviceGetPowerManagementLimit, "power_limit_mw")
NUMBER(nvmlDeviceGetPowerState, "power_state")
NUMBER(nvmlDeviceGetFanSpeed, "fan_percent")
NUMBER(nvmlDeviceGetPcieReplayCounter, "pcie_replay")
NUMBERED(nvmlDeviceGetTemperature, "temperature")
NUMBERED(nvmlDeviceGetTemperatureThreshold, "temperature_threshold")
NUMBERED(nvmlDeviceGetClockInfo, "clock")
NUMBERED(nvmlDeviceGetMaxClockInfo, "max_clock")

int nvmlDeviceGetTemperatureV(Device device, TemperatureV1 *temperature) {
    unsigned celsius = 0;
    int status = ask_numbered(device, "temperature", (unsigned)temperature->sensor, &celsius);
    if (!status) temperature->celsius = (int)celsius;
    return status;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device device, u64 *answer) { return ask_number(device, "clocks_event_reasons", answer); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, u64 *answer) { return ask_number(device, "clocks_event_reasons", answer); }
int nvmlDeviceGetSupportedEventTypes(Device device, u64 *answer) { return ask_number(device, "event_types", answer); }

/* "MJ", or "MJ MW MS": MJ at CLOCK_BOOTTIME MS, growing by MW since. */
int nvmlDeviceGetTotalEnergyConsumption(Device device, u64 *millijoules) {
    char value[VALUE_MAX];
    u64 base = 0, milliwatts = 0, since = 0;
    int status = ask(device, "energy_mj", value);
    if (status) return status;
    if (sscanf(value, "%llu %llu %llu", &base, &milliwatts, &since) == 3) {
        struct timespec now;
        clock_gettime(CLOCK_BOOTTIME, &now);
        u64 elapsed = (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000 - since;
        base += milliwatts * elapsed / 1000;
    }
    *millijoules = base;
    return SUCCESS;
}

static int fill_memory(Device device, u64 *total, u64 *reserved, u64 *used) {
    char value[VALUE_MAX];
    int status = ask(device, "memory_bytes", value);  /* total, used, reserved */
    *total = *reserved = *used = 0;
    if (!status) sscanf(value, "%llu %llu %llu", total, used, reserved);
    return status;
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    u64 reserved;
    int status = fill_memory(device, &memory->total, &reserved, &memory->used);
    memory->used += reserved;
    memory->free = memory->total - memory->used;
    return status;
}

int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    int status = fill_memory(device, &memory->total, &memory->reserved, &memory->used);
    memory->free = memory->total - memory->used - memory->reserved;
    return status;
}

int nvmlDeviceGetUtilizationRates(Device device, Utilization *use) {
    char value[VALUE_MAX];
    int status = ask(device, "utilization", value);
    use->gpu = use->memory = 0;
    if (!status) sscanf(value, "%u %u", &use->gpu, &use->memory);
    return status;
}

int nvmlDeviceGetTotalEccErrors(Device device, unsigned type, unsigned counter, u64 *answer) {
    char key[64];
    snprintf(key, sizeof key, "ecc.%u.%u", type, counter);
    return ask_number(device, key, answer);
}

int nvmlDeviceGetMemoryErrorCounter(Device device, unsigned type, unsigned counter, unsigned location, u64 *answer) {
    char key[64];
    snprintf(key, sizeof key, "ecc.%u.%u.%u", type, counter, location);
    return ask_number(device, key, answer);
}

int nvmlDeviceGetSramEccErrorStatus(Device device, Sram *sram) { return ask_unsigned(device, "sram_exceeded", &sram->is_exceeded); }

/* "STATE STATUS MASK" */
int nvmlDeviceGetGpuFabricInfoV(Device device, Fabric *fabric) {
    char value[VALUE_MAX];
    unsigned state = 0;
    int status = ask(device, "fabric", value);
    if (status) return status;
    sscanf(value, "%u %d %u", &state, &fabric->status, &fabric->mask);
    fabric->state = (unsigned char)state;
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
    char value[VALUE_MAX];
    int status = ask(device, "remapped_rows", value);
    *corrected = *uncorrected = *pending = *failed = 0;
    if (!status) sscanf(value, "%u %u %u %u", corrected, uncorrected, pending, failed);
    return status;
}

/* Each field has a status of its own; only a device that answers nothing fails the call. */
int nvmlDeviceGetFieldValues(Device device, int count, Field *fields) {
    char uuid[VALUE_MAX], key[64];
    int status = ask_text(device, "uuid", uuid, sizeof uuid);
    if (status) return status;
    for (int i = 0; i < count; i++) {
        unsigned scope = fields[i].scope;
        fields[i].type = 3;
        fields[i].value.whole = 0;
        snprintf(key, sizeof key, scope ? "field.%u.%u" : "field.%u", fields[i].field, scope);
        fields[i].status = ask_number(device, key, &fields[i].value.whole);
        if (fields[i].status == NOT_SUPPORTED && fields[i].field == 191 && !scope)
            fields[i].status = nvmlDeviceGetTotalEnergyConsumption(device, &fields[i].value.whole);
    }
    return SUCCESS;
}

/* ---- processes: a line "gpu 0 compute PID BYTES" each ---- */

static int ask_processes(Device device, const char *kind, unsigned *count, Process *processes) {
    char uuid[VALUE_MAX], place[32], prefix[VALUE_MAX], value[VALUE_MAX];
    const char *cursor = text;
    unsigned room = *count, found = 0;
    int status = ask_text(device, "uuid", uuid, sizeof uuid);
    if (status) return status;
    place_of(device, place);
    snprintf(prefix, sizeof prefix, "gpu %s %s ", place, kind);
    while (line_after(&cursor, prefix, value)) {
        if (processes && found < room) {
            memset(&processes[found], 0, sizeof *processes);
            processes[found].gpu_instance = processes[found].compute_instance = ~0u;
            sscanf(value, "%u %llu", &processes[found].pid, &processes[found].memory);
        }
        found++;
    }
    *count = found;
    return found > (processes ? room : 0) ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) { return ask_processes(device, "compute", count, processes); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned *count, Process *processes) { return ask_processes(device, "graphics", count, processes); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device device, unsigned *count, Process *processes) { return ask_processes(device, "mps", count, processes); }

/* ---- how GPUs are linked: lines "pair 0 1 topology 10", "pair 0 1 p2p.2 0" and "gpu 0 nvlink.3 1 PEER_BUS_ID" ---- */

static int ask_pair_of(Device one, Device other, const char *key, unsigned *answer) {
    char uuid[VALUE_MAX], a[32], b[32], prefix[VALUE_MAX], value[VALUE_MAX];
    int status = ask_text(one, "uuid", uuid, sizeof uuid);
    if (!status) status = ask_text(other, "uuid", uuid, sizeof uuid);
    if (status) return status;
    if (!place_of(one, a) || !place_of(other, b)) return GPU_IS_LOST;
    snprintf(prefix, sizeof prefix, "pair %s %s %s ", a, b, key);
    if (!look_up(prefix, value)) {
        snprintf(prefix, sizeof prefix, "pair %s %s %s ", b, a, key);
        if (!look_up(prefix, value)) return NOT_SUPPORTED;
    }
    if (value[0] == '!') return atoi(value + 1);
    *answer = (unsigned)strtoul(value, NULL, 10);
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(Device one, Device other, unsigned *level) { return ask_pair_of(one, other, "topology", level); }

int nvmlDeviceGetP2PStatus(Device one, Device other, unsigned capability, unsigned *status) {
    char key[32];
    snprintf(key, sizeof key, "p2p.%u", capability);
    return ask_pair_of(one, other, key, status);
}

static int ask_nvlink(Device device, unsigned link, unsigned *is_active, char *peer) {
    char key[32], value[VALUE_MAX];
    snprintf(key, sizeof key, "nvlink.%u", link);
    int status = ask(device, key, value);
    *peer = 0;
    if (!status) sscanf(value, "%u %31s", is_active, peer);
    return status;
}

int nvmlDeviceGetNvLinkState(Device device, unsigned link, unsigned *is_active) {
    char peer[32];
    return ask_nvlink(device, link, is_active, peer);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device device, unsigned link, Pci *pci) {
    char peer[32];
    unsigned is_active;
    int status = ask_nvlink(device, link, &is_active, peer);
    if (!status && !*peer) return NOT_SUPPORTED;
    if (!status) fill_pci(peer, pci);
    return status;
}

int nvmlDeviceGetNvLinkVersion(Device device, unsigned link, unsigned *version) { (void)link; return ask_unsigned(device, "nvlink_version", version); }
int nvmlDeviceGetNvLinkRemoteDeviceType(Device device, unsigned link, unsigned *type) { (void)link; return ask_unsigned(device, "nvlink_remote_type", type); }

/* ---- events: lines "event NUMBER UUID TYPE DATA"; NUMBER only grows ---- */

static u64 last_event(void) {
    const char *cursor = text;
    char value[VALUE_MAX];
    u64 last = 0;
    while (line_after(&cursor, "event ", value)) {
        u64 number = strtoull(value, NULL, 10);
        if (number > last) last = number;
    }
    return last;
}

int nvmlEventSetCreate(EventSet *set) {
    int status = driver();
    if (status) return status;
    *set = calloc(1, sizeof **set);
    (*set)->seen = last_event();
    return SUCCESS;
}

int nvmlEventSetFree(EventSet set) {
    free(set);
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Device device, u64 types, EventSet set) {
    u64 supported = 0;
    int status = ask_number(device, "event_types", &supported);
    if (status) return status;
    if (types & ~supported) return NOT_SUPPORTED;
    if (set->count == WATCHED_MAX) return INVALID_ARGUMENT;
    set->watched[set->count] = device;
    set->masks[set->count++] = types;
    return SUCCESS;
}

/* Take the next event that somebody waits for. */
static int next_event(EventSet set, Event *event) {
    const char *cursor = text;
    char value[VALUE_MAX], uuid[VALUE_MAX];
    u64 number, type, data;
    while (line_after(&cursor, "event ", value)) {
        if (sscanf(value, "%llu %255s %llu %llu", &number, uuid, &type, &data) != 4 || number <= set->seen) continue;
        set->seen = number;
        for (int i = 0; i < set->count; i++)
            if (!strcmp(set->watched[i]->uuid, uuid) && set->masks[i] & type) {
                *event = (Event){set->watched[i], type, data, ~0u, ~0u};
                return 1;
            }
    }
    return 0;
}

static int has_lost_one(EventSet set) {
    char place[32];
    for (int i = 0; i < set->count; i++)
        if (!place_of(set->watched[i], place) || failure_of(place) == GPU_IS_LOST) return 1;
    return 0;
}

/* As NVIDIA documents it: an event, or TIMEOUT, or at once GPU_IS_LOST while a watched GPU is lost. */
int nvmlEventSetWait_v2(EventSet set, Event *event, unsigned timeout_ms) {
    for (long left_us = (long)timeout_ms * 1000;; left_us -= POLL_US) {
        int status = driver();
        if (status) return status;
        if (next_event(set, event)) return SUCCESS;
        if (has_lost_one(set)) return GPU_IS_LOST;
        if (left_us <= 0) return TIMEOUT;
        usleep(POLL_US);
    }
}
