// SPDX-License-Identifier: GPL-2.0
/*
 * Robust mutexes in shared memory: whoever waits for one hears of its owner's death, also if the owner's memory is taken
 * away before it has run its exit.
 */
#include "mrelease.h"

#define VICTIMS 20

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

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 20;
	int ret = pthread_mutex_timedlock(mutex, &until);

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

/* Stopped victims: the kill wakes them, and the reaper, which runs already, is first. */
static void test_stopped(const char *name, victim_fn run, bool second)
{
	int wrong = 0, worst = -EOWNERDEAD;

	for (int i = 0; i < VICTIMS; i++) {
		new_mutexes();
		pid_t pid = spawn_ready(run, NULL);
		int pidfd = pidfd_open_or_die(pid, 0);

		kill(pid, SIGSTOP);
		waitpid(pid, NULL, WUNTRACED);
		/* A stock kernel may lose the list; there the kill alone has to do. */
		int ret = has_flag(PROCESS_MRELEASE_REAP_KILL) ? mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL) : kill(pid, SIGKILL);
		int first = locked(&mutexes->first), other = second ? locked(&mutexes->second) : -EOWNERDEAD;

		if (ret || first != -EOWNERDEAD || other != -EOWNERDEAD || !killed(pid, pidfd)) {
			wrong++;
			worst = first != -EOWNERDEAD ? first : other;
		}
		close(pidfd);
		/* Each costs a wait for a dead owner */
		if (wrong)
			break;
	}
	tap(!wrong, name, "%d of %d waiters did not hear of it, the lock says %s", wrong, VICTIMS, code(worst));
}

/* A victim that can't run its exit is reaped nevertheless, after a while. */
static void test_held(void)
{
	int pidfd;

	new_mutexes();
	pid_t pid = hold(holds_one, NULL, &pidfd);
	int ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);

	tap(!ret, "a_victim_that_can_not_let_go_is_reaped_in_the_end", "%s", code(ret));
	let_go(pid, pidfd);
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
		waited = now() - begun < 1;
		close(caller_fd);
		let_go(pid, pidfd);
		ret = locked(&mutexes->first);
	}
	tap(waited && dead && ret == -EOWNERDEAD, "a_caller_that_waits_can_be_killed", "%s, the lock says %s",
	    dead ? "killed" : "it did not wait", code(ret));
}

int main(void)
{
	test_stopped("stopped_owner_of_a_robust_mutex", holds_one, false);
	test_stopped("thread_that_owns_one", thread_holds, false);
	test_stopped("list_through_private_memory", holds_through_private, true);
	if (has_flag(PROCESS_MRELEASE_REAP_KILL)) {
		test_held();
		test_killed_caller();
	}
	return tap_end();
}
