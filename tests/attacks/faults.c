/* Stands between a process and the C library's calls that change files (LD_PRELOAD), counts them, and strikes at the
   one of a chosen number: the process dies there, or the disk is full from there on. Native code (SQLite, safetensors,
   NumPy) goes through the same calls as Python does, so that none is missed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FULL };

/* In memory that a parent shares with the children it forks: the count outlives the child. */
struct told { atomic_long calls; char what[64]; };
static struct told *told;
static long strike = -1;
static int mode = COUNT, armed = 0;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void make_room(void) {
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void faults_reset(void) { atomic_store(&told->calls, 0); told->what[0] = 0; }
long faults_calls(void) { return atomic_load(&told->calls); }
const char *faults_what(void) { return told->what; }
void faults_arm(long at, int how) { strike = at; mode = how; armed = 1; }

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

/* Counts a call; whether it is the one to strike at. A full disk stays full. */
static int struck(const char *what) {
    if (!armed) return 0;
    long number = atomic_fetch_add(&told->calls, 1);
    if (mode == COUNT || (mode == FULL ? number < strike : number != strike)) return 0;
    if (!told->what[0]) strncpy(told->what, what, sizeof told->what - 1);
    if (mode == KILL) die();
    return 1;
}

static int regular(int fd) {
    struct stat found;
    return armed && fd > 2 && fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

static int is_full(void) { errno = ENOSPC; return -1; }

/* A write: TEAR lets half of it through and dies; FULL lets half of the first one through, and none after it. */
#define WRITES(name, half, whole) \
    if (regular(fd) && struck(#name)) { \
        if (mode == TEAR) { if (size > 1) { half; } else { whole; } die(); } \
        if (faults_calls() == strike + 1 && size > 1) return half; \
        return is_full(); \
    } \
    return whole

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    WRITES(write, real(fd, data, size / 2), real(fd, data, size));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    WRITES(pwrite, real(fd, data, size / 2, at), real(fd, data, size, at));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    WRITES(pwrite64, real(fd, data, size / 2, at), real(fd, data, size, at));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    int size = count;
    WRITES(writev, real(fd, parts, count / 2), real(fd, parts, count));
}
ssize_t sendfile(int fd, int from, off_t *at, size_t size) {
    REAL(sendfile);
    WRITES(sendfile, real(fd, from, at, size / 2), real(fd, from, at, size));
}
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
    REAL(sendfile64);
    WRITES(sendfile64, real(fd, from, at, size / 2), real(fd, from, at, size));
}
ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *at, size_t size, unsigned flags) {
    REAL(copy_file_range);
    WRITES(copy_file_range, real(from, start, fd, at, size / 2, flags), real(from, start, fd, at, size, flags));
}
/* NumPy's tofile; the C library's own buffer would hide it. */
size_t fwrite(const void *data, size_t each, size_t count, FILE *file) {
    REAL(fwrite);
    if (regular(fileno(file)) && struck("fwrite")) {
        size_t done = count > 1 ? real(data, each, count / 2, file) : 0;
        fflush(file);
        if (mode == TEAR) die();
        errno = ENOSPC;
        return done;
    }
    return real(data, each, count, file);
}

/* Any other call: TEAR dies when it is done. needs_room: whether a full disk refuses it. */
#define CALLS(name, needs_room, call) \
    if (!struck(#name)) return call; \
    if (mode == TEAR) { (void)!call; die(); } \
    if (needs_room) return is_full(); \
    return call

int rename(const char *from, const char *to) { REAL(rename); CALLS(rename, 0, real(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    CALLS(renameat, 0, real(a, from, b, to));
}
int unlink(const char *path) { REAL(unlink); CALLS(unlink, 0, real(path)); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    CALLS(unlinkat, 0, real(folder, path, flags));
}
int rmdir(const char *path) { REAL(rmdir); CALLS(rmdir, 0, real(path)); }
int mkdir(const char *path, mode_t bits) { REAL(mkdir); CALLS(mkdir, 1, real(path, bits)); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); CALLS(ftruncate, 0, real(fd, size)); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); CALLS(ftruncate64, 0, real(fd, size)); }
int fsync(int fd) { REAL(fsync); CALLS(fsync, 0, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); CALLS(fdatasync, 0, real(fd)); }

/* An open counts where it makes a file or empties one. */
#define OPENS(name, call) \
    mode_t bits = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); bits = va_arg(more, mode_t); va_end(more); } \
    REAL(name); \
    if (!(flags & (O_CREAT | O_TRUNC)) || strncmp(path, "/dev/", 5) == 0) return call; \
    CALLS(name, (flags & O_CREAT) && access(path, F_OK) != 0, call)

int open(const char *path, int flags, ...) { OPENS(open, real(path, flags, bits)); }
int open64(const char *path, int flags, ...) { OPENS(open64, real(path, flags, bits)); }
int openat(int folder, const char *path, int flags, ...) { OPENS(openat, real(folder, path, flags, bits)); }
int openat64(int folder, const char *path, int flags, ...) { OPENS(openat64, real(folder, path, flags, bits)); }
