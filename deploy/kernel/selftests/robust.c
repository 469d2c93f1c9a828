// SPDX-License-Identifier: GPL-2.0
/*
 * Robust mutexes in shared memory: whoever waits for one hears of its owner's death, also if the owner's memory is taken
 * away before it has run its exit.
 */
#include "mrelease.h"
#include <linux/futex.h>

#define VICTIMS 20
/* OOM_REAPER_DELAY of mm/oom_kill.c */
#define WAITS_SECONDS 2.0

struct mutexes {
	pthread_mutex_t first, second;
};

static struct mutexes *mutexes;

static void robust_mutex(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(mutex, &attributes);
}

static void new_mutexes(void)
{
	if (!mutexes)
		mutexes = mmap(NULL, sizeof(*mutexes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	robust_mutex(&mutexes->first);
	robust_mutex(&mutexes->second);
}

/* The result of a lock that waits no longer than a victim may take to die. */
static int locked(pthread_mutex_t *mutex)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 20;
	int ret = pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &until);

	if (!ret || ret == EOWNERDEAD)
		pthread_mutex_unlock(mutex);
	return -ret;
}

static void holds_one(void *unused)
{
	touched(MIB);
	pthread_mutex_lock(&mutexes->first);
	report_ready();
	for (;;)
		pause();
}

/* Between the two in shared memory, the list goes through a mutex in memory of the victim's own. */
static void holds_through_private(void *unused)
{
	pthread_mutex_t *own = touched(MIB);

	robust_mutex(own);
	pthread_mutex_lock(&mutexes->first);
	pthread_mutex_lock(own);
	pthread_mutex_lock(&mutexes->second);
	report_ready();
	for (;;)
		pause();
}

static void *thread_holds_one(void *unused)
{
	holds_one(NULL);
	return NULL;
}

static void thread_holds(void *unused)
{
	pthread_t thread;

	pthread_create(&thread, NULL, thread_holds_one, NULL);
	for (;;)
		pause();
}

static void *idles(void *unused)
{
	__atomic_fetch_add(&shared->go, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return NULL;
}

static void twenty_idle_threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 20; i++)
		pthread_create(&thread, NULL, idles, NULL);
	wait_for(&shared->go, 20);
}

/* More lists than the kernel looks at without memory of its own. */
static void one_of_many_holds(void *unused)
{
	twenty_idle_threads();
	thread_holds(NULL);
}

/*
 * Kill and reap; the result. A victim that has not run for as long as the kernel waits, which a busy machine may do to it,
 * is reaped all the same: *@too_long says so. A stock kernel may lose the list; there the kill alone has to do.
 */
static int kill_owner(pid_t pid, int pidfd, bool *too_long)
{
	double begun = now();
	int ret = has_flag(PROCESS_MRELEASE_REAP_KILL) ? mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL) : kill(pid, SIGKILL);

	*too_long = now() - begun > WAITS_SECONDS * 0.95;
	return ret;
}

/* Stopped victims: the kill wakes them, and the reaper, which runs already, is first. */
static void test_stopped(const char *name, victim_fn run, bool second)
{
	int wrong = 0, tries = 0, ret = 0, first = 0, other = 0;
	bool too_long;

	for (int i = 0; i < VICTIMS && !wrong && tries < 2 * VICTIMS; i++, tries++) {
		new_mutexes();
		pid_t pid = spawn_ready(run, NULL);
		int pidfd = pidfd_open_or_die(pid, 0);

		kill(pid, SIGSTOP);
		waitpid(pid, NULL, WUNTRACED);
		ret = kill_owner(pid, pidfd, &too_long);
		first = locked(&mutexes->first);
		other = second ? locked(&mutexes->second) : -EOWNERDEAD;
		if (!killed(pid, pidfd) || ret || first != -EOWNERDEAD || other != -EOWNERDEAD) {
			wrong += !too_long;
			i -= too_long;
		}
		close(pidfd);
	}
	tap(!wrong && tries < 2 * VICTIMS, name, "%d tries, %s, the locks say %s and %s", tries, code(ret), code(first),
	    code(other));
}

static void *locks_and_unlocks(void *unused)
{
	report_ready();
	for (;;) {
		pthread_mutex_lock(&mutexes->first);
		pthread_mutex_unlock(&mutexes->first);
	}
	return NULL;
}

static void races(void *unused)
{
	pthread_t thread;

	pthread_create(&thread, NULL, locks_and_unlocks, NULL);
	locks_and_unlocks(NULL);
}

/*
 * User-mode Linux looks for signals, and may then wait its turn (enter_turnstile() in arch/um/os-Linux/skas/process.c): a
 * thread that was killed meanwhile runs on to its next system call. There it may inherit the mutex from one that has died,
 * release it, and so make it useless, which the next owner hears of as well.
 */
static bool is_user_mode_linux(void)
{
	return !system("grep -q 'User Mode Linux' /proc/cpuinfo");
}

/* Victims that take and release the mutex all the time, on every CPU: wherever the kill meets them, the next owner hears. */
static void test_racing(int rounds)
{
	int wrong = 0, dead_owners = 0, ret = 0;
	bool too_long, uml = is_user_mode_linux();

	for (int i = 0; i < rounds && !wrong; i++) {
		new_mutexes();
		pid_t pid = spawn_ready(races, NULL);
		int pidfd = pidfd_open_or_die(pid, 0);

		usleep(i % 50 * 20);
		if (kill_owner(pid, pidfd, &too_long))
			wrong++;
		ret = locked(&mutexes->first);
		dead_owners += ret == -EOWNERDEAD;
		bool heard = !ret || ret == -EOWNERDEAD || (uml && ret == -ENOTRECOVERABLE);

		if (!killed(pid, pidfd) || (!heard && !too_long))
			wrong++;
		close(pidfd);
	}
	tap(!wrong && dead_owners, "owners_that_take_and_release_it_all_the_time", "%d rounds, %d dead owners, the lock says %s",
	    rounds, dead_owners, code(ret));
}

/* A victim that can't run its exit is reaped nevertheless, after a while; the longest of some tries, as the clock may jump. */
static void test_held(const char *name, unsigned int flags)
{
	double longest = 0;
	int ret = 0;

	for (int i = 0; i < 3 && !ret && longest < WAITS_SECONDS * 0.9; i++) {
		new_mutexes();
		double seconds = reap_held(holds_one, NULL, flags, &ret);

		longest = seconds > longest ? seconds : longest;
	}
	tap(!ret && longest > WAITS_SECONDS * 0.9, name, "%s after %.1f s", code(ret), longest);
}

static void many_idle(void *unused)
{
	touched(MIB);
	twenty_idle_threads();
	/* A mutex that was released is on no list. */
	pthread_mutex_lock(&mutexes->first);
	pthread_mutex_unlock(&mutexes->first);
	report_ready();
	for (;;)
		pause();
}

/* Lists that the thread's own exit won't find either: set_robust_list() takes any address. */
static void has_list(void *head)
{
	if (syscall(SYS_set_robust_list, head, sizeof(struct robust_list_head)))
		_exit(1);
	report_ready();
	for (;;)
		pause();
}

static void list_nowhere(void *unused)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(page, 4096);
	has_list(page);
}

static void list_unreadable(void *unused)
{
	char *page = touched(4096);

	mprotect(page, 4096, PROT_NONE);
	has_list(page);
}

static void list_untouched(void *unused)
{
	has_list(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

/* Who holds nothing is not waited for: held as it is, each of these would take the whole two seconds. */
static void test_nothing_held(const char *name, victim_fn run)
{
	double best = 1e9;
	int ret = 0;

	for (int i = 0; i < 5 && !ret && best > WAITS_SECONDS / 2; i++) {
		new_mutexes();
		double seconds = reap_held(run, (void *)MIB, PROCESS_MRELEASE_REAP_KILL, &ret);

		best = seconds < best ? seconds : best;
	}
	tap(!ret && best < WAITS_SECONDS / 2, name, "%s after %.3f s", code(ret), best);
}

/* The caller is killed while it waits: it ends, and leaves the rest to the victim. */
static void reaps(void *pidfd)
{
	report_ready();
	mrelease((long)pidfd, PROCESS_MRELEASE_REAP_KILL);
	_exit(0);
}

static void test_killed_caller(void)
{
	bool waited = false, dead = false;
	int ret = 0;

	/* Again if the machine was so busy that the wait may have been over before the kill came. */
	for (int i = 0; i < 10 && !waited; i++) {
		int pidfd;

		new_mutexes();
		pid_t pid = hold(holds_one, NULL, &pidfd);
		double begun = now();
		pid_t caller = spawn_ready(reaps, (void *)(long)pidfd);
		int caller_fd = pidfd_open_or_die(caller, 0);

		usleep(100000);
		kill(caller, SIGKILL);
		dead = killed(caller, caller_fd);
		waited = now() - begun < WAITS_SECONDS * 0.95;
		close(caller_fd);
		let_go(pid, pidfd);
		ret = locked(&mutexes->first);
	}
	tap(waited && dead && ret == -EOWNERDEAD, "a_caller_that_waits_can_be_killed", "%s, the lock says %s",
	    !waited ? "the machine was too busy" : dead ? "killed" : "it did not wait", code(ret));
}

/*
 * All of it once more by a program of 32 bits, whose threads have their lists in other fields, with other pointers in them. It
 * is executed and not searched for, so that what a kernel can't run is not taken for a shell script.
 */
static void in_32_bits(const char *self)
{
	char path[4096];
	int status;

	snprintf(path, sizeof(path), "%s32", self);
	pid_t pid = fork();

	if (!pid) {
		execv(path, (char *[]){ path, NULL });
		_exit(errno == ENOENT ? 126 : errno == ENOEXEC ? 127 : 125);
	}
	waitpid(pid, &status, 0);
	int ended = WIFEXITED(status) ? WEXITSTATUS(status) : -1;

	if (ended == 126)
		tap_skip("robust_mutexes_in_32_bits", "no 32-bit C library where the tests were built");
	else if (ended == 127)
		tap_skip("robust_mutexes_in_32_bits", "this kernel runs no programs of 32 bits");
	else if (ended != 0 && ended != 1)
		tap(false, "robust_mutexes_in_32_bits", "ended with status %#x", status);
	else
		tap_failed += ended;
}

int main(int count, char **words)
{
	int kills = part_of_kills(1);

	test_stopped("stopped_owner_of_a_robust_mutex", holds_one, false);
	test_stopped("thread_that_owns_one", thread_holds, false);
	test_stopped("list_through_private_memory", holds_through_private, true);
	test_stopped("one_of_many_threads_owns_one", one_of_many_holds, false);
	test_racing(kills > 400 ? kills / 20 : 20);
	if (has_flag(PROCESS_MRELEASE_REAP_KILL)) {
		test_nothing_held("a_process_that_holds_nothing_is_not_waited_for", sleeper);
		test_nothing_held("threads_that_hold_nothing_are_not_waited_for", many_idle);
		test_nothing_held("a_list_where_nothing_is_mapped_is_not_waited_for", list_nowhere);
		test_nothing_held("a_list_that_may_not_be_read_is_not_waited_for", list_unreadable);
		test_nothing_held("a_list_in_untouched_memory_is_not_waited_for", list_untouched);
		test_held("a_victim_that_can_not_let_go_is_reaped_in_the_end", PROCESS_MRELEASE_REAP_KILL);
		test_held("without_flags_as_well", 0);
		test_killed_caller();
	}
	if (sizeof(long) > 4)
		in_32_bits(words[0]);
	return tap_end();
}
