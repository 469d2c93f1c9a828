/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the selftests of the process_mrelease series share: the calls, victims in a state of one's choice, and TAP.
 *
 * Every test runs on a stock kernel too: there it asserts what a stock kernel does. Which of the two this is, the probe of the
 * flags says; who knows better puts MRELEASE_EXPECT=patched or stock into the environment, and the probe has to agree.
 * No test asserts a time, but for the two seconds that the kernel waits for robust
 * futexes, and there the best of several tries counts; a victim that never dies ends in WAIT_MS.
 */
#ifndef MRELEASE_H
#define MRELEASE_H

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* include/uapi/linux/mman.h and asm-generic/siginfo.h of the patched kernel */
#define PROCESS_MRELEASE_REAP_KILL	(1 << 0)
#define PROCESS_MRELEASE_KEEP_FILE	(1 << 1)
#define KILL_MRELEASE			1

#ifndef SYS_process_mrelease
#define SYS_process_mrelease		448
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD			O_EXCL
#endif
#define PIDFD_SELF_THREAD_GROUP		(-10001)

#define MIB				(1UL << 20)
#define WAIT_MS				120000

/* -errno or 0 */
static inline int mrelease(int pidfd, unsigned int flags)
{
	return syscall(SYS_process_mrelease, pidfd, flags) ? -errno : 0;
}

static inline int pidfd_open_or_die(pid_t pid, unsigned int flags)
{
	int fd = syscall(SYS_pidfd_open, pid, flags);

	if (fd < 0) {
		printf("Bail out! pidfd_open(%d): %s\n", pid, strerror(errno));
		exit(1);
	}
	return fd;
}

static inline bool has_flag(unsigned int flag)
{
	return mrelease(-1, flag) == -EBADF;
}

/* One part in @part of the kills that were asked for; never none, of which no test could fail. */
static inline int part_of_kills(int part)
{
	int rounds = atoi(getenv("MRELEASE_KILLS") ?: "10000") / part;

	return rounds > 0 ? rounds : 1;
}

static inline double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* --- TAP --- */

static int tap_count, tap_failed;
/* A program of 32 bits runs some of the tests once more, under names of its own. */
static const char *const tap_suffix = sizeof(long) == 4 ? "_in_32_bits" : "";

__attribute__((format(printf, 3, 4)))
static inline void tap(bool ok, const char *name, const char *format, ...)
{
	va_list arguments;

	printf("%s %d %s%s # ", ok ? "ok" : "not ok", ++tap_count, name, tap_suffix);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
	tap_failed += !ok;
}

/* A test that this kernel or machine can't run, in TAP's own words. */
__attribute__((format(printf, 2, 3)))
static inline void tap_skip(const char *name, const char *format, ...)
{
	va_list arguments;

	printf("ok %d %s%s # SKIP ", ++tap_count, name, tap_suffix);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	fflush(stdout);
}

#define figure(name, format, value, unit) \
	do { printf("# figure %s " format " %s\n", name, value, unit); fflush(stdout); } while (0)

static inline int tap_end(void)
{
	printf("1..%d\n", tap_count);
	return tap_failed ? 1 : 0;
}

static inline const char *code(int ret)
{
	static char names[8][32];
	static int next;
	char *name = names[next++ % 8];

	snprintf(name, sizeof(names[0]), "%s", ret ? strerrorname_np(-ret) ?: "?" : "0");
	return name;
}

/* --- memory that victims and testers both see --- */

struct shared {
	int ready;	/* victims that are where they should be */
	int go;
	int result;
	pid_t pids[64];
	void *address;
};

static struct shared *shared;

static inline void shared_new(void)
{
	if (!shared)
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(shared, 0, sizeof(*shared));
}

static inline void report_ready(void)
{
	__atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
}

static inline bool wait_for(int *word, int value)
{
	for (int i = 0; i < WAIT_MS; i++) {
		if (__atomic_load_n(word, __ATOMIC_SEQ_CST) >= value)
			return true;
		usleep(1000);
	}
	return false;
}

/* --- victims --- */

typedef void (*victim_fn)(void *argument);

static inline pid_t spawn(victim_fn run, void *argument)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0) {
		printf("Bail out! fork: %s\n", strerror(errno));
		exit(1);
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run(argument);
		_exit(0);
	}
	return pid;
}

/* A victim that has told us that it is ready. */
static inline pid_t spawn_ready(victim_fn run, void *argument)
{
	pid_t pid;

	shared_new();
	pid = spawn(run, argument);
	if (!wait_for(&shared->ready, 1)) {
		printf("Bail out! a victim never got ready\n");
		exit(1);
	}
	return pid;
}

static inline void *touched(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		printf("Bail out! mmap of %zu bytes: %s\n", bytes, strerror(errno));
		_exit(1);
	}
	for (size_t i = 0; i < bytes; i += 4096)
		memory[i] = 1;
	return memory;
}

static inline void sleeper(void *bytes)
{
	if (bytes)
		touched((size_t)bytes);
	report_ready();
	for (;;)
		pause();
}

static inline bool alive(pid_t pid)
{
	siginfo_t info = { 0 };

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && !info.si_pid;
}

static inline bool gone_within(int pidfd)
{
	struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };

	return poll(&poll_fd, 1, WAIT_MS) == 1;
}

/* True if our child @pid dies of SIGKILL; collects it. */
static inline bool killed(pid_t pid, int pidfd)
{
	int status;

	if (!gone_within(pidfd))
		return false;
	return waitpid(pid, &status, __WALL) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static inline void finish(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
}

/*
 * What a caller does to have a process killed and reaped: REAP_KILL where the kernel has it, else the signal and then the
 * call, which may lose the race. @extra is KEEP_FILE or 0.
 */
static inline int kill_and_reap(int pidfd, unsigned int extra)
{
	if (has_flag(PROCESS_MRELEASE_REAP_KILL))
		return mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL | extra);
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0))
		return -errno;
	return mrelease(pidfd, 0);
}

/* Whether @ret of kill_and_reap() is right: on stock the race may be lost. */
static inline bool reaped(int ret)
{
	return !ret || (ret == -ESRCH && !has_flag(PROCESS_MRELEASE_REAP_KILL));
}

/* A victim that is killed but held at the door with its mm: the reaper does all the work. */
static inline pid_t hold(victim_fn run, void *argument, int *pidfd)
{
	pid_t pid = spawn_ready(run, argument);

	*pidfd = pidfd_open_or_die(pid, 0);
	ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
	return pid;
}

static inline void let_go(pid_t pid, int pidfd)
{
	ptrace(PTRACE_DETACH, pid, 0, 0);
	gone_within(pidfd);
	waitpid(pid, NULL, __WALL);
	close(pidfd);
}

/* State of a process, as in /proc/PID/stat; 0 if it is gone. */
static inline char state_of(pid_t pid)
{
	char path[64], state = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	FILE *file = fopen(path, "r");

	if (file) {
		if (fscanf(file, "%*d %*s %c", &state) != 1)
			state = 0;
		fclose(file);
	}
	return state;
}

/* Seconds that a call took for a victim that is held. */
static inline double reap_held(victim_fn run, void *argument, unsigned int flags, int *ret)
{
	int pidfd;
	pid_t pid = hold(run, argument, &pidfd);
	double begun = now();

	*ret = mrelease(pidfd, flags);
	double seconds = now() - begun;

	let_go(pid, pidfd);
	return seconds;
}

/* --- files --- */

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* What a file has in its first line; "" if there is none. */
static inline void read_text(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "r");

	if (!file || !fgets(text, size, file))
		*text = 0;
	text[strcspn(text, "\n")] = 0;
	if (file)
		fclose(file);
}

static inline long read_key(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	char word[128];
	long value, found = -1;

	while (file && fscanf(file, "%127s %ld", word, &value) == 2)
		if (!strcmp(word, key))
			found = value;
	if (file)
		fclose(file);
	return found;
}

static inline long read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	long value = -1;

	if (file) {
		if (fscanf(file, "%ld", &value) != 1)
			value = -1;
		fclose(file);
	}
	return value;
}

/* Folder on a file system with a page cache that can be written back, from the run script. */
static inline const char *work_folder(void)
{
	return getenv("MRELEASE_FOLDER") ?: ".";
}

static inline const char *work_path(const char *name)
{
	static char paths[4][256];
	static int next;
	char *path = paths[next++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", work_folder(), name);
	return path;
}

/* The 8 bytes that belong at @offset of a test file of generation @seed. */
static inline uint64_t pattern(uint64_t offset, uint64_t seed)
{
	return (offset / 8 + 1) * 0x9e3779b97f4a7c15ULL ^ seed;
}

static inline void fill_pattern(void *to, size_t bytes, uint64_t offset, uint64_t seed)
{
	uint64_t *words = to;

	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = pattern(offset + i * 8, seed);
}

static inline bool holds_pattern(const void *from, size_t bytes, uint64_t offset, uint64_t seed)
{
	const uint64_t *words = from;

	for (size_t i = 0; i < bytes / 8; i++)
		if (words[i] != pattern(offset + i * 8, seed))
			return false;
	return true;
}

/* --- cgroups --- */

static inline const char *cgroup_root(void)
{
	return getenv("MRELEASE_CGROUP") ?: "/sys/fs/cgroup";
}

struct cgroup {
	char path[200];
};

static inline struct cgroup cgroup_new(const char *name)
{
	struct cgroup group;

	snprintf(group.path, sizeof(group.path), "%s/%s", cgroup_root(), name);
	if (mkdir(group.path, 0755) && errno != EEXIST) {
		printf("Bail out! mkdir %s: %s\n", group.path, strerror(errno));
		exit(1);
	}
	return group;
}

static inline void cgroup_enter(struct cgroup *group)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/cgroup.procs", group->path);
	if (!write_text(path, "0")) {
		printf("Bail out! %s: %s\n", path, strerror(errno));
		_exit(1);
	}
}

static inline long cgroup_stat(struct cgroup *group, const char *key)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/memory.stat", group->path);
	return read_key(path, key);
}

static inline bool cgroup_write(struct cgroup *group, const char *name, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", group->path, name);
	return write_text(path, text);
}

static inline void cgroup_remove(struct cgroup *group)
{
	for (int i = 0; i < 1000 && rmdir(group->path) && errno == EBUSY; i++)
		usleep(10000);
}

#endif
