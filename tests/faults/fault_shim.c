/*
 * Faults of a disk and of a clock for one unaltered process: LD_PRELOAD=fault_shim.so.
 *
 * FAULT_CONTROL names a file of int64 fields (struct control, mirrored by tests/support/fault_shim.py) that is mapped shared:
 * a running process obeys a change at its next call. FAULT_UNDER is the directory whose files are meant; FAULT_LOG gets one
 * line per file made, sync, cut and failure. Only regular files and directories below FAULT_UNDER are touched, except by the clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    /* told to us; calls are counted from 1, `to` is included, 0 switches off */
    int64_t sync_fail_from, sync_fail_to, sync_errno;
    int64_t write_fail_from, write_fail_to, write_errno;
    int64_t create_errno;
    int64_t short_ppm, interrupt_ppm;
    int64_t sync_delay_us;
    int64_t clock_offset_ns;
    int64_t drop_unsynced; /* a failed sync loses what was written since the last good one, as a kernel may */
    int64_t seed;
    /* told by us */
    int64_t syncs, writes, syncs_failed, writes_failed, writes_shortened, writes_interrupted, creates_failed;
};

static struct control nothing;
static struct control *control = &nothing;
static char under[PATH_MAX];
static size_t under_length;
static int journal = -1;
static uint64_t state;

/* Where each file was synced to for the last time; a handful of files is open at once. */
#define FILES 256
static struct { ino_t inode; off_t synced; } files[FILES];

static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fsync)(int), (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    real_write = dlsym(RTLD_NEXT, "write");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *place = getenv("FAULT_UNDER"), *path = getenv("FAULT_CONTROL"), *log = getenv("FAULT_LOG");
    if (!place || !path || !log || !realpath(place, under))
        return;
    under_length = strlen(under);
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return;
    void *mapped = mmap(NULL, sizeof nothing, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED)
        return;
    journal = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    control = mapped;
    state = (uint64_t)control->seed * 2654435761u + (uint64_t)getpid() + 88172645463325252u;
}

/* Marsaglia's xorshift64: the same seed and calls give the same faults. */
static int happens(int64_t ppm)
{
    if (ppm <= 0)
        return 0;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int64_t)(state % 1000000u) < ppm;
}

static int64_t counted(int64_t *field)
{
    return __atomic_add_fetch(field, 1, __ATOMIC_RELAXED);
}

static int within(int64_t call, int64_t from, int64_t to)
{
    return from > 0 && call >= from && call <= to;
}

static int meant_path(const char *path)
{
    return under_length && strncmp(path, under, under_length) == 0 && path[under_length] == '/';
}

/* Whether this descriptor is a file or directory that faults are for; its status and name are returned too. */
static int meant(int descriptor, struct stat *status, char *name, size_t size)
{
    if (!under_length || fstat(descriptor, status) != 0 || !(S_ISREG(status->st_mode) || S_ISDIR(status->st_mode)))
        return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, name, size - 1);
    if (length <= 0)
        return 0;
    name[length] = 0;
    return meant_path(name) || strcmp(name, under) == 0;
}

static void tell(const char *what, const struct stat *status, long long size, const char *name)
{
    char line[PATH_MAX + 128];
    int length = snprintf(line, sizeof line, "%s %c %llu %lld %s\n", what, S_ISDIR(status->st_mode) ? 'd' : 'f',
                          (unsigned long long)status->st_ino, size, name);
    if (journal >= 0 && length > 0)
        syscall(SYS_write, journal, line, (size_t)length);
}

static off_t *synced_of(ino_t inode)
{
    int free_one = -1;
    for (int each = 0; each < FILES; each++) {
        if (files[each].inode == inode)
            return &files[each].synced;
        if (!files[each].inode && free_one < 0)
            free_one = each;
    }
    if (free_one < 0)
        free_one = (int)(inode % FILES);
    files[free_one].inode = inode;
    files[free_one].synced = 0;
    return &files[free_one].synced;
}

static void drop(int descriptor, off_t from, off_t to)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    /* opened again: with O_APPEND a positioned write would append */
    int again = open(link, O_WRONLY | O_CLOEXEC);
    static const char zeros[4096];
    while (again >= 0 && from < to) {
        size_t piece = (size_t)(to - from) < sizeof zeros ? (size_t)(to - from) : sizeof zeros;
        if (syscall(SYS_pwrite64, again, zeros, piece, from) <= 0)
            break;
        from += (off_t)piece;
    }
    if (again >= 0)
        close(again);
}

static int synced(int descriptor, int (*real)(int), const char *what)
{
    struct stat status;
    char name[PATH_MAX];
    if (!meant(descriptor, &status, name, sizeof name))
        return real(descriptor);
    int64_t call = counted(&control->syncs);
    /* in pieces: whoever ends the delay does not want to wait for the end of it */
    for (int64_t slept_us = 0; slept_us < *(volatile int64_t *)&control->sync_delay_us; slept_us += 5000)
        usleep(5000);
    off_t *known = synced_of(status.st_ino);
    if (within(call, control->sync_fail_from, control->sync_fail_to)) {
        counted(&control->syncs_failed);
        tell("sync-failed", &status, (long long)status.st_size, name);
        if (control->drop_unsynced && S_ISREG(status.st_mode))
            drop(descriptor, *known, status.st_size);
        errno = (int)control->sync_errno;
        return -1;
    }
    int done = real(descriptor);
    if (done == 0 && S_ISREG(status.st_mode))
        *known = status.st_size;
    tell(done == 0 ? what : "sync-failed", &status, (long long)status.st_size, name);
    return done;
}

int fsync(int descriptor)
{
    return synced(descriptor, real_fsync, "fsync");
}

int fdatasync(int descriptor)
{
    return synced(descriptor, real_fdatasync, "fdatasync");
}

ssize_t write(int descriptor, const void *content, size_t size)
{
    struct stat status;
    char name[PATH_MAX];
    if (!real_write)
        return syscall(SYS_write, descriptor, content, size);
    if (!under_length || size == 0 || !meant(descriptor, &status, name, sizeof name))
        return real_write(descriptor, content, size);
    int64_t call = counted(&control->writes);
    if (within(call, control->write_fail_from, control->write_fail_to)) {
        counted(&control->writes_failed);
        tell("write-failed", &status, (long long)status.st_size, name);
        errno = (int)control->write_errno;
        return -1;
    }
    if (happens(control->interrupt_ppm)) {
        counted(&control->writes_interrupted);
        errno = EINTR;
        return -1;
    }
    if (size > 1 && happens(control->short_ppm)) {
        counted(&control->writes_shortened);
        size = 1 + (size_t)(state % (size - 1));
    }
    return real_write(descriptor, content, size);
}

static int cut(int descriptor, off_t size)
{
    struct stat status;
    char name[PATH_MAX];
    if (meant(descriptor, &status, name, sizeof name))
        tell("truncate", &status, (long long)size, name);
    return real_ftruncate(descriptor, size);
}

int ftruncate(int descriptor, off_t size)
{
    return cut(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size)
{
    return cut(descriptor, size);
}

static int opened(const char *path, int flags, mode_t mode)
{
    if ((flags & O_CREAT) && control->create_errno && meant_path(path)) {
        counted(&control->creates_failed);
        errno = (int)control->create_errno;
        return -1;
    }
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    struct stat status;
    if (descriptor >= 0 && (flags & O_CREAT) && (flags & O_EXCL) && meant_path(path) && fstat(descriptor, &status) == 0) {
        /* the inode may be that of a file that is gone */
        *synced_of(status.st_ino) = 0;
        tell("create", &status, 0, path);
    }
    return descriptor;
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags | O_LARGEFILE, mode);
}

int clock_gettime(clockid_t clock, struct timespec *told)
{
    int done = real_clock_gettime ? real_clock_gettime(clock, told) : (int)syscall(SYS_clock_gettime, clock, told);
    int64_t offset = control->clock_offset_ns;
    if (done == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t whole = (int64_t)told->tv_sec * 1000000000 + told->tv_nsec + offset;
        told->tv_sec = whole / 1000000000;
        told->tv_nsec = whole % 1000000000;
    }
    return done;
}

int gettimeofday(struct timeval *told, void *zone)
{
    struct timespec now;
    (void)zone;
    int done = clock_gettime(CLOCK_REALTIME, &now);
    told->tv_sec = now.tv_sec;
    told->tv_usec = now.tv_nsec / 1000;
    return done;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}
