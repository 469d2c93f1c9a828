// SPDX-License-Identifier: GPL-2.0
/* Flags and return codes of process_mrelease(): who is killed, who is not, and what the caller is told. */
#include "mrelease.h"

#define KILL PROCESS_MRELEASE_REAP_KILL
#define NOBODY 65534

static bool patched;

/* What a call with REAP_KILL returns: @want where the kernel knows the flag, else always EINVAL. */
static int expected(int want)
{
	return patched ? want : -EINVAL;
}

/* The probe of a flag against what the tester says that this kernel is. */
static void test_probe(const char *name, unsigned int flag)
{
	const char *expect = getenv("MRELEASE_EXPECT");

	if (!expect)
		tap_skip(name, "no MRELEASE_EXPECT says what this kernel is; the probe says %s", code(mrelease(-1, flag)));
	else
		tap(has_flag(flag) ? !strcmp(expect, "patched") : !strcmp(expect, "stock"), name, "expected %s, probe says %s",
		    expect, code(mrelease(-1, flag)));
}

static void test_flags(void)
{
	int ret;

	patched = has_flag(KILL);
	test_probe("flag_reap_kill_is_known_where_patched", KILL);
	test_probe("flag_keep_file_is_known_where_patched", PROCESS_MRELEASE_KEEP_FILE);
	ret = mrelease(-1, 1U << 31);
	tap(ret == -EINVAL, "unknown_flag_is_refused_before_the_pidfd_is_looked_at", "%s", code(ret));
	ret = mrelease(-1, 1U << 31 | KILL);
	tap(ret == -EINVAL, "unknown_flag_beside_a_known_one_is_refused", "%s", code(ret));
	ret = mrelease(-1, 0);
	tap(ret == -EBADF, "bad_descriptor", "%s", code(ret));
	int fd = open("/dev/null", O_RDONLY);

	ret = mrelease(fd, 0);
	int with_flag = mrelease(fd, KILL);

	tap(ret == -EBADF && with_flag == expected(-EBADF), "descriptor_of_something_else", "%s, with REAP_KILL %s",
	    code(ret), code(with_flag));
	close(fd);
}

static void test_live_process_without_flag(void)
{
	pid_t pid = spawn_ready(sleeper, (void *)MIB);
	int pidfd = pidfd_open_or_die(pid, 0);
	int ret = mrelease(pidfd, 0);

	tap(ret == -EINVAL && alive(pid), "live_process_is_not_reaped_without_flag", "%s", code(ret));
	if (patched) {
		ret = mrelease(pidfd, PROCESS_MRELEASE_KEEP_FILE);
		tap(ret == -EINVAL && alive(pid), "live_process_is_not_reaped_with_keep_file_alone", "%s", code(ret));
	}
	finish(pid);
	close(pidfd);
}

static void test_one_process(const char *name, victim_fn run, void *argument, int before_signal)
{
	pid_t pid = spawn_ready(run, argument);
	int pidfd = pidfd_open_or_die(pid, 0);

	if (before_signal) {
		kill(pid, before_signal);
		usleep(20000);
	}
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(reaped(ret) && dead, name, "%s, %s", code(ret), dead ? "killed" : "still there");
	close(pidfd);
}

static void returns(void *unused)
{
	_exit(0);
}

static void test_zombie(void)
{
	pid_t pid = spawn(returns, NULL);
	int pidfd = pidfd_open_or_die(pid, 0);

	gone_within(pidfd);
	int without = mrelease(pidfd, 0), with = mrelease(pidfd, KILL);

	tap(without == -ESRCH && with == expected(-ESRCH), "zombie", "%s, with REAP_KILL %s", code(without), code(with));
	waitpid(pid, NULL, 0);
	without = mrelease(pidfd, 0);
	with = mrelease(pidfd, KILL);
	tap(without == -ESRCH && with == expected(-ESRCH), "collected_process", "%s, with REAP_KILL %s", code(without),
	    code(with));
	close(pidfd);
}

static void test_kernel_thread(void)
{
	int pidfd = syscall(SYS_pidfd_open, 2, 0); /* kthreadd */
	int without = mrelease(pidfd, 0), with = mrelease(pidfd, KILL);

	tap((without == -ESRCH || without == -EINVAL) && with == -EINVAL, "kernel_thread", "%s, with REAP_KILL %s", code(without),
	    code(with));
	close(pidfd);
}

static void test_global_init(void)
{
	int pidfd = syscall(SYS_pidfd_open, 1, 0);
	int ret = mrelease(pidfd, KILL);

	tap(ret == expected(-EBUSY) && !kill(1, 0), "global_init_is_not_killed", "%s", code(ret));
	close(pidfd);
}

/* Runs as another user, on the pidfd it inherited. */
static void reap_as_nobody(void *pidfd)
{
	if (setresuid(NOBODY, NOBODY, NOBODY))
		_exit(1);
	shared->result = mrelease((long)pidfd, KILL);
}

static void test_permission(void)
{
	pid_t pid = spawn_ready(sleeper, (void *)MIB);
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t caller = spawn(reap_as_nobody, (void *)(long)pidfd);

	waitpid(caller, NULL, 0);
	tap(shared->result == expected(-EPERM) && alive(pid), "other_users_process_is_not_killed", "%s", code(shared->result));
	finish(pid);
	close(pidfd);
}

static char stack[65536] __attribute__((aligned(16)));
static volatile int guard = 1;

static int sharer(void *unused)
{
	report_ready();
	for (;;)
		syscall(SYS_pause);
	return 0;
}

/* A process whose mm a second one uses; the second stays root if @mixed, and the first gives up root. */
static void shares_mm(void *mixed)
{
	shared->pids[0] = clone(sharer, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	if (mixed && syscall(SYS_setresuid, NOBODY, NOBODY, NOBODY))
		_exit(1);
	touched(MIB);
	report_ready();
	for (;;) {
		syscall(SYS_pause);
		guard++;
	}
}

static void test_sharer(void)
{
	shared_new();
	pid_t pid = spawn(shares_mm, NULL);

	wait_for(&shared->ready, 2);
	int pidfd = pidfd_open_or_die(pid, 0), other = pidfd_open_or_die(shared->pids[0], 0);

	if (patched) {
		int ret = mrelease(pidfd, KILL);
		bool both = killed(pid, pidfd) && gone_within(other);

		tap(!ret && both, "process_that_shares_the_mm_dies_too", "%s, %s", code(ret), both ? "both gone" : "one is left");
	} else {
		kill(pid, SIGKILL);
		gone_within(pidfd);
		waitpid(pid, NULL, 0);
		tap(!kill(shared->pids[0], 0), "process_that_shares_the_mm_lives_on", "a kill alone takes one process");
		kill(shared->pids[0], SIGKILL);
	}
	close(pidfd);
	close(other);
}

static void test_sharer_of_another_user(void)
{
	shared_new();
	pid_t pid = spawn(shares_mm, (void *)1);

	wait_for(&shared->ready, 2);
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t caller = spawn(reap_as_nobody, (void *)(long)pidfd);

	waitpid(caller, NULL, 0);
	bool both = alive(pid) && !kill(shared->pids[0], 0);

	tap(shared->result == expected(-EBUSY) && both, "nobody_is_killed_if_one_sharer_may_not_be", "%s, %s",
	    code(shared->result), both ? "both alive" : "one was killed");
	kill(shared->pids[0], SIGKILL);
	finish(pid);
	close(pidfd);
}

/* --- pid namespaces --- */

static void namespace_child(void *unused)
{
	report_ready();
	int pidfd = syscall(SYS_pidfd_open, 1, 0);

	shared->result = mrelease(pidfd, KILL);
	__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
}

static void namespace_init(void *unused)
{
	uint64_t *memory = touched(4 * MIB);

	fill_pattern(memory, 4 * MIB, 0, 7);
	if (!fork())
		namespace_child(NULL);
	wait_for(&shared->go, 1);
	/* Our memory is what it was, after somebody inside tried. */
	shared->pids[1] = holds_pattern(memory, 4 * MIB, 0, 7);
	__atomic_store_n(&shared->go, 2, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
}

static pid_t fork_in_namespace(victim_fn run, void *argument)
{
	fflush(stdout);
	pid_t pid = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run(argument);
		_exit(0);
	}
	return pid;
}

static void test_namespace_init(void)
{
	shared_new();
	pid_t pid = fork_in_namespace(namespace_init, NULL);
	bool answered = wait_for(&shared->go, 2);
	int pidfd = pidfd_open_or_die(pid, 0);

	tap(answered && shared->result == expected(-EBUSY) && shared->pids[1] && alive(pid),
	    "namespace_init_from_inside_lives_and_keeps_its_memory", "%s", code(shared->result));
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(reaped(ret) && dead, "namespace_init_from_outside", "%s", code(ret));
	close(pidfd);
}

static void reap_from_below(void *pidfd)
{
	shared->result = mrelease((long)pidfd, KILL);
}

static void test_ancestor_namespace(void)
{
	pid_t pid = spawn_ready(sleeper, NULL);
	int pidfd = pidfd_open_or_die(pid, 0);
	pid_t caller = fork_in_namespace(reap_from_below, (void *)(long)pidfd);

	waitpid(caller, NULL, 0);
	tap(shared->result == -EINVAL && alive(pid), "process_of_an_ancestor_namespace", "%s", code(shared->result));
	finish(pid);
	close(pidfd);
}

/* --- threads --- */

static void *thread_sleeps(void *unused)
{
	report_ready();
	for (;;)
		pause();
	return NULL;
}

static void threads(void *leader_leaves)
{
	pthread_t thread;

	for (int i = 0; i < 8; i++)
		pthread_create(&thread, NULL, thread_sleeps, NULL);
	wait_for(&shared->ready, 8);
	touched(4 * MIB);
	report_ready();
	if (leader_leaves)
		syscall(SYS_exit, 0);
	for (;;)
		pause();
}

static void test_threads(const char *name, bool leader_leaves)
{
	shared_new();
	pid_t pid = spawn(threads, (void *)(long)leader_leaves);

	wait_for(&shared->ready, 9);
	if (leader_leaves)
		usleep(50000);
	int pidfd = pidfd_open_or_die(pid, 0);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(reaped(ret) && dead, name, "%s", code(ret));
	close(pidfd);
}

static void *tells_tid(void *unused)
{
	shared->pids[0] = gettid();
	return thread_sleeps(NULL);
}

static void two_threads(void *unused)
{
	pthread_t thread;

	pthread_create(&thread, NULL, tells_tid, NULL);
	for (;;)
		pause();
}

static void test_thread_pidfd(void)
{
	pid_t pid = spawn_ready(two_threads, NULL);
	int pidfd = syscall(SYS_pidfd_open, shared->pids[0], PIDFD_THREAD);
	int without = mrelease(pidfd, 0), with = mrelease(pidfd, KILL);

	/* pidfd_get_task() finds no process for it, on every kernel that has PIDFD_THREAD. */
	tap(pidfd >= 0 && without == -ESRCH && with == expected(-ESRCH) && alive(pid), "pidfd_of_a_thread", "%s, with REAP_KILL %s",
	    code(without), code(with));
	finish(pid);
	close(pidfd);
}

static void reaps_itself(void *by_name)
{
	int pidfd = by_name ? PIDFD_SELF_THREAD_GROUP : pidfd_open_or_die(getpid(), 0);

	report_ready();
	mrelease(pidfd, KILL);
	for (;;)
		pause();
}

static void test_self(const char *name, bool by_name)
{
	if (by_name && mrelease(PIDFD_SELF_THREAD_GROUP, 0) == -EBADF) {
		tap_skip(name, "this kernel has no PIDFD_SELF");
		return;
	}
	if (!patched) {
		int ret = mrelease(by_name ? PIDFD_SELF_THREAD_GROUP : pidfd_open_or_die(getpid(), 0), KILL);

		tap(ret == -EINVAL, name, "%s", code(ret));
		return;
	}
	pid_t pid = spawn_ready(reaps_itself, (void *)(long)by_name);
	int pidfd = pidfd_open_or_die(pid, 0);
	bool dead = killed(pid, pidfd);

	tap(dead, name, "%s", dead ? "killed" : "still there");
	close(pidfd);
}

/* --- vfork and ptrace --- */

static void vforks(void *unused)
{
	touched(MIB);
	pid_t child = vfork();

	if (!child) {
		shared->pids[0] = getpid();
		report_ready();
		for (;;)
			pause();
	}
	_exit(3);
}

static void test_vfork(void)
{
	pid_t pid = spawn_ready(vforks, NULL);
	int parent = pidfd_open_or_die(pid, 0), child = pidfd_open_or_die(shared->pids[0], 0);
	int ret = kill_and_reap(child, 0);
	int status = 0;

	/* The parent shares the mm: with REAP_KILL it dies too. On stock its vfork() returns. */
	bool gone = gone_within(child) && gone_within(parent) && waitpid(pid, &status, 0) == pid;
	bool right = patched ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : WIFEXITED(status);

	if (patched)
		tap(!ret && gone && right, "vfork_child_takes_its_parent_along", "%s", code(ret));
	else
		tap((ret == -EINVAL || ret == -ESRCH) && gone && right, "vfork_child_dies_alone", "%s", code(ret));
	close(parent);
	close(child);
}

static void test_ptraced(void)
{
	pid_t pid = spawn_ready(sleeper, (void *)MIB);
	int pidfd = pidfd_open_or_die(pid, 0);
	int status, ret;

	ptrace(PTRACE_ATTACH, pid, 0, 0);
	waitpid(pid, &status, __WALL);
	ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(reaped(ret) && dead, "ptraced_and_stopped", "%s", code(ret));
	close(pidfd);
}

/* A victim that the tracer holds on its way out, with its mm: what process_mrelease() does then does not depend on a race. */
static void test_dying(void)
{
	pid_t pid = spawn_ready(sleeper, (void *)(16 * MIB));
	int pidfd = pidfd_open_or_die(pid, 0);
	int status, ret, again;

	ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT);
	kill(pid, SIGKILL);
	waitpid(pid, &status, __WALL);
	ret = mrelease(pidfd, 0);
	again = mrelease(pidfd, 0);
	tap(!ret && (!again || again == -EINVAL), "dying_process_without_flag", "%s, then %s", code(ret), code(again));
	ret = mrelease(pidfd, KILL);
	tap(ret == expected(0), "dying_process_with_reap_kill", "%s", code(ret));
	ptrace(PTRACE_DETACH, pid, 0, 0);
	gone_within(pidfd);
	waitpid(pid, NULL, __WALL);
	close(pidfd);
}

static void test_frozen(void)
{
	struct cgroup group = cgroup_new("frozen");
	pid_t pid = spawn_ready(sleeper, (void *)MIB);
	int pidfd = pidfd_open_or_die(pid, 0);
	char text[16], events[256];

	snprintf(text, sizeof(text), "%d", pid);
	cgroup_write(&group, "cgroup.procs", text);
	cgroup_write(&group, "cgroup.freeze", "1");
	snprintf(events, sizeof(events), "%s/cgroup.events", group.path);
	for (int i = 0; i < 1000 && read_key(events, "frozen") != 1; i++)
		usleep(1000);
	bool frozen = read_key(events, "frozen") == 1;
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(frozen && reaped(ret) && dead, "frozen_cgroup", "%s", code(ret));
	close(pidfd);
	cgroup_remove(&group);
}

/* The si_code of the SIGKILL, as the tracepoint sees it. SIGKILL has no siginfo that a tracer could ask for. */
static void test_si_code(void)
{
	const char *root = "/sys/kernel/tracing";
	char path[128], line[512], pid_text[32];
	int seen = -1;

	snprintf(path, sizeof(path), "%s/events/signal/signal_generate/enable", root);
	if (!write_text(path, "1")) {
		/* Nothing else shows the si_code of a SIGKILL: the kernel keeps no siginfo for it that ptrace could read. */
		snprintf(path, sizeof(path), "%s/trace", root);
		tap_skip("kill_has_a_si_code_of_its_own",
			 access(path, F_OK) ? "no tracefs at %s" : "in %s is no tracepoint signal:signal_generate", root);
		return;
	}
	snprintf(path, sizeof(path), "%s/trace", root);
	close(open(path, O_WRONLY | O_TRUNC));
	pid_t pid = spawn_ready(sleeper, NULL);
	int pidfd = pidfd_open_or_die(pid, 0);

	kill_and_reap(pidfd, 0);
	killed(pid, pidfd);
	close(pidfd);
	snprintf(pid_text, sizeof(pid_text), " pid=%d ", pid);
	FILE *trace = fopen(path, "r");

	while (trace && fgets(line, sizeof(line), trace))
		if (strstr(line, "signal_generate: sig=9 ") && strstr(line, pid_text))
			sscanf(strstr(line, "code="), "code=%d", &seen);
	if (trace)
		fclose(trace);
	snprintf(path, sizeof(path), "%s/events/signal/signal_generate/enable", root);
	write_text(path, "0");
	tap(seen == (patched ? KILL_MRELEASE : 0), "kill_has_a_si_code_of_its_own", "si_code %d", seen);
}

int main(void)
{
	shared_new();
	test_flags();
	test_live_process_without_flag();
	test_one_process("running_process", sleeper, (void *)(4 * MIB), 0);
	test_one_process("stopped_process", sleeper, (void *)(4 * MIB), SIGSTOP);
	test_zombie();
	test_kernel_thread();
	test_global_init();
	test_permission();
	test_sharer();
	test_sharer_of_another_user();
	test_namespace_init();
	test_ancestor_namespace();
	test_threads("threads_that_are_blocked", false);
	test_threads("dead_leader_with_live_threads", true);
	test_thread_pidfd();
	test_self(patched ? "a_process_may_reap_itself" : "reaping_oneself_is_refused_on_stock", false);
	test_self(patched ? "a_process_may_reap_itself_by_pidfd_self" : "pidfd_self_is_refused_on_stock", true);
	test_vfork();
	test_ptraced();
	test_dying();
	test_frozen();
	test_si_code();
	return tap_end();
}
