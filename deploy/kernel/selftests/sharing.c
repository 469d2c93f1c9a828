// SPDX-License-Identifier: GPL-2.0
/* Victims that change while they are struck: exec in flight, processes that appear beside them, a core dump in progress. */
#include "mrelease.h"

static const char *self;

static bool cgroup_is_empty(struct cgroup *group)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/cgroup.events", group->path);
	for (int i = 0; i < WAIT_MS / 10; i++) {
		if (read_key(path, "populated") == 0)
			return true;
		usleep(10000);
	}
	return false;
}

/* --- exec --- */

static void *execs(void *unused)
{
	execl(self, self, "--exec", NULL);
	_exit(127);
}

static void starts_exec(void *group)
{
	cgroup_enter(group);
	execs(NULL);
}

static int exec_again(bool threaded)
{
	pthread_t thread;

	touched(MIB);
	if (!threaded)
		execs(NULL);
	/* By another thread than the leader: the process changes its leader. */
	pthread_create(&thread, NULL, execs, NULL);
	for (;;)
		pause();
	return 0;
}

static void test_exec(const char *name, bool threaded, int rounds)
{
	struct cgroup group = cgroup_new("exec");
	int wrong = 0, lost = 0;

	setenv("MRELEASE_EXEC_THREADED", threaded ? "1" : "", 1);
	for (int i = 0; i < rounds; i++) {
		pid_t pid = spawn(starts_exec, &group);
		int pidfd = pidfd_open_or_die(pid, 0);

		usleep(5000 + i * 997 % 20000);
		int ret = kill_and_reap(pidfd, 0);

		lost += ret == -ESRCH;
		if (!reaped(ret) || !killed(pid, pidfd))
			wrong++;
		close(pidfd);
	}
	bool empty = cgroup_is_empty(&group);

	tap(!wrong && empty, name, "%d of %d wrong, %d too late, %s", wrong, rounds, lost, empty ? "nobody left" : "somebody left");
	cgroup_remove(&group);
}

/* --- CLONE_VM --- */

static char stacks[48][16384] __attribute__((aligned(16)));

static int clone_sleeps(void *unused)
{
	for (;;)
		syscall(SYS_pause);
	return 0;
}

static void clones_all_the_time(void *group)
{
	cgroup_enter(group);
	touched(MIB);
	report_ready();
	for (int i = 0; i < 48; i++)
		clone(clone_sleeps, stacks[i] + sizeof(stacks[i]), CLONE_VM | SIGCHLD, NULL);
	for (;;)
		pause();
}

static void test_clones(int rounds)
{
	struct cgroup group = cgroup_new("clones");
	int wrong = 0, left = 0;

	for (int i = 0; i < rounds; i++) {
		pid_t pid = spawn_ready(clones_all_the_time, &group);
		int pidfd = pidfd_open_or_die(pid, 0);

		usleep(i * 613 % 8000);
		int ret = kill_and_reap(pidfd, 0);
		bool dead = killed(pid, pidfd);

		if (has_flag(PROCESS_MRELEASE_REAP_KILL)) {
			/* Whoever shared the mm went with it, however late it came. */
			wrong += ret || !dead;
			left += !cgroup_is_empty(&group);
		} else {
			wrong += !dead || (ret && ret != -ESRCH && ret != -EINVAL);
			cgroup_write(&group, "cgroup.kill", "1");
			cgroup_is_empty(&group);
		}
		close(pidfd);
	}
	tap(!wrong && !left, "processes_that_appear_meanwhile", "%d of %d wrong, somebody left in %d", wrong, rounds, left);
	cgroup_remove(&group);
}

/* --- core dump --- */

static void dumps_core(void *group)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	cgroup_enter(group);
	setrlimit(RLIMIT_CORE, &unlimited);
	prctl(PR_SET_DUMPABLE, 1);
	touched(32 * MIB);
	report_ready();
	abort();
}

/* The dump goes to a program that reads nothing: without a kill it never ends. */
static void test_core_dump(void)
{
	struct cgroup group = cgroup_new("core");
	char before[256], pattern_text[512];

	read_text("/proc/sys/kernel/core_pattern", before, sizeof(before));
	snprintf(pattern_text, sizeof(pattern_text), "|%s --core", self);
	if (!write_text("/proc/sys/kernel/core_pattern", pattern_text)) {
		tap(false, "core_dump_in_progress", "core_pattern: %s", strerror(errno));
		return;
	}
	pid_t pid = spawn_ready(dumps_core, &group);
	int pidfd = pidfd_open_or_die(pid, 0);
	char path[64];
	long dumping = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	for (int i = 0; i < 10000 && !dumping; i++) {
		char line[128];
		FILE *file = fopen(path, "r");

		while (file && fgets(line, sizeof(line), file))
			sscanf(line, "CoreDumping: %ld", &dumping);
		if (file)
			fclose(file);
		usleep(1000);
	}
	usleep(100000);
	int without = mrelease(pidfd, 0);
	int ret = kill_and_reap(pidfd, 0);
	int status;

	/* Without the flag it counts as not dying until the dump has noticed the signal. */
	for (int i = 0; i < 2000 && ret == -EINVAL && !has_flag(PROCESS_MRELEASE_REAP_KILL); i++) {
		usleep(1000);
		ret = mrelease(pidfd, 0);
	}
	bool gone = gone_within(pidfd) && waitpid(pid, &status, 0) == pid;
	long left = cgroup_stat(&group, "anon");

	tap(dumping == 1 && without == -EINVAL && reaped(ret) && gone && left < (long)MIB, "core_dump_in_progress",
	    "dumping %ld, without flag %s, then %s, %ld KiB left", dumping, code(without), code(ret), left / 1024);
	write_text("/proc/sys/kernel/core_pattern", before);
	close(pidfd);
	cgroup_remove(&group);
}

/* --- swap --- */

static void swapped_out(void *group)
{
	cgroup_enter(group);
	char *memory = touched(32 * MIB);

	fill_pattern(memory, 32 * MIB, 0, 3);
	madvise(memory, 32 * MIB, MADV_PAGEOUT);
	report_ready();
	for (;;)
		pause();
}

static void test_swap(void)
{
	struct cgroup group = cgroup_new("swap");
	char path[256];

	if (access("/sys/block/zram0", F_OK)) {
		tap_skip("swapped_memory", "this kernel has no zram to swap to");
		cgroup_remove(&group);
		return;
	}
	if (system("echo 64M >/sys/block/zram0/disksize && mkswap -q /dev/zram0 && swapon /dev/zram0")) {
		tap(false, "swapped_memory", "no swap on zram");
		return;
	}
	pid_t pid = spawn_ready(swapped_out, &group);
	int pidfd = pidfd_open_or_die(pid, 0);

	snprintf(path, sizeof(path), "%s/memory.swap.current", group.path);
	long before = read_number(path);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long after = read_number(path), left = cgroup_stat(&group, "anon");

	tap(reaped(ret) && dead && before > (long)(16 * MIB) && after < (long)MIB && left < (long)MIB, "swapped_memory",
	    "%s, %ld MiB of swap before, %ld KiB after", code(ret), before >> 20, after >> 10);
	close(pidfd);
	cgroup_remove(&group);
	if (system("swapoff /dev/zram0 && echo 1 >/sys/block/zram0/reset"))
		printf("# zram stays\n");
}

int main(int argc, char **argv)
{
	int rounds = part_of_kills(50);

	self = argv[0];
	if (argc > 1 && !strcmp(argv[1], "--exec"))
		return exec_again(getenv("MRELEASE_EXEC_THREADED") && *getenv("MRELEASE_EXEC_THREADED"));
	if (argc > 1 && !strcmp(argv[1], "--core")) {
		alarm(100); /* outlives the test only if the test is broken */
		for (;;)
			pause();
	}
	shared_new();
	test_exec("exec_in_flight", false, rounds);
	test_exec("exec_in_flight_by_another_thread", true, rounds);
	test_clones(part_of_kills(100));
	test_core_dump();
	test_swap();
	return tap_end();
}
