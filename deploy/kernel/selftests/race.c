// SPDX-License-Identifier: GPL-2.0
/*
 * The race that REAP_KILL is there for: a victim that runs between the SIGKILL and process_mrelease() is past exit_mm(),
 * and the call finds no memory. Counts how often it is lost, with the kill inside the call and outside.
 */
#include "mrelease.h"

static size_t victim_bytes = 64 * 1024;

/* Kills @count victims, returns how many calls came too late; -1 if one failed in another way or did not die. */
static int count_lost(int count, bool in_one_call, useconds_t between)
{
	int lost = 0;

	for (int i = 0; i < count; i++) {
		pid_t pid = spawn_ready(sleeper, (void *)victim_bytes);
		int pidfd = pidfd_open_or_die(pid, 0);
		int ret;

		if (in_one_call) {
			ret = mrelease(pidfd, PROCESS_MRELEASE_REAP_KILL);
		} else {
			syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
			if (between)
				usleep(between);
			ret = mrelease(pidfd, 0);
		}
		if (!killed(pid, pidfd) || (ret && ret != -ESRCH))
			return -1;
		close(pidfd);
		lost += ret == -ESRCH;
	}
	return lost;
}

static void *reaps(void *pidfd)
{
	wait_for(&shared->go, 1);
	return (void *)(long)mrelease((long)pidfd, PROCESS_MRELEASE_REAP_KILL);
}

static void test_two_reapers(int rounds)
{
	int wrong = 0, both = 0;

	for (int i = 0; i < rounds; i++) {
		pid_t pid = spawn_ready(sleeper, (void *)MIB);
		int pidfd = pidfd_open_or_die(pid, 0);
		pthread_t first, second;
		void *one, *two;

		pthread_create(&first, NULL, reaps, (void *)(long)pidfd);
		pthread_create(&second, NULL, reaps, (void *)(long)pidfd);
		__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
		pthread_join(first, &one);
		pthread_join(second, &two);
		both += !one && !two;
		if ((one && two) || ((long)one && (long)one != -ESRCH) || ((long)two && (long)two != -ESRCH) ||
		    !killed(pid, pidfd))
			wrong++;
		close(pidfd);
	}
	tap(!wrong, "two_reapers_at_once", "%d of %d wrong, both reaped %d times", wrong, rounds, both);
}

int main(void)
{
	int kills = part_of_kills(1), some = part_of_kills(10), few = part_of_kills(50);
	bool patched = has_flag(PROCESS_MRELEASE_REAP_KILL);
	int lost;

	lost = count_lost(some, false, 0);
	tap(lost >= 0, "kill_then_reap", "%d of %d came too late", lost, some);
	figure("lost_kill_then_reap", "%d", lost * 10000 / some, "per_10000");
	lost = count_lost(some, false, 300);
	tap(lost >= 0, "kill_then_reap_300_us_later", "%d of %d came too late", lost, some);
	figure("lost_kill_then_reap_300_us_later", "%d", lost * 10000 / some, "per_10000");
	if (patched) {
		lost = count_lost(kills, true, 0);
		tap(lost == 0, "reap_kill_never_loses", "%d of %d came too late", lost, kills);
		figure("lost_reap_kill", "%d", lost, "per_run");
		victim_bytes = 16 * MIB;
		lost = count_lost(few, true, 0);
		tap(lost == 0, "reap_kill_never_loses_against_16_mib", "%d of %d came too late", lost, few);
		test_two_reapers(part_of_kills(30));
	}
	return tap_end();
}
