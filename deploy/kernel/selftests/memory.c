// SPDX-License-Identifier: GPL-2.0
/*
 * Memory that is more than pages in page tables, and what works on a victim's pages beside the reaper: userfaultfd, hugetlb,
 * huge pages, MMU notifiers and device memory, khugepaged, migration between nodes. User-mode Linux has little of it.
 */
#include "mapped.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#define HUGE (2 * MIB)
#define THP "/sys/kernel/mm/transparent_hugepage/"
#define HUGETLB "/sys/kernel/mm/hugepages/hugepages-2048kB/"
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static bool patched;
static int rounds;

static void stays(void)
{
	report_ready();
	for (;;)
		pause();
}

static char *aligned(size_t bytes)
{
	char *memory = mmap(NULL, bytes + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return (char *)(((uintptr_t)memory + HUGE - 1) & ~(HUGE - 1));
}

/* --- userfaultfd --- */

#define HOLE_BYTES (16 * MIB)

static void *faults(void *hole)
{
	*(volatile char *)hole;
	return NULL;
}

static void *faults_in_the_kernel(void *hole)
{
	int fd = open("/proc/self/exe", O_RDONLY);

	return (void *)read(fd, hole, 8);
}

static void waits_for_pages(void *group)
{
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API };
	char *hole = mmap(NULL, HOLE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = { .range = { .start = (uintptr_t)hole, .len = HOLE_BYTES },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &range))
		shared->result = -errno;
	cgroup_enter(group);
	touched(8 * MIB);
	shared->address = hole;
	shared->pids[0] = uffd;
	pthread_create(&thread, NULL, faults, hole);
	pthread_create(&thread, NULL, faults_in_the_kernel, hole + HOLE_BYTES / 2);
	stays();
}

/* Two threads wait for a page that the tester, who has the victim's userfaultfd, never gives. */
static void test_userfaultfd(void)
{
	struct cgroup group = cgroup_new("uffd");
	pid_t pid = spawn_ready(waits_for_pages, &group);
	int pidfd = pidfd_open_or_die(pid, 0);
	int uffd = syscall(SYS_pidfd_getfd, pidfd, shared->pids[0], 0);
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg message;
	int waiting = 0;

	if (shared->result == -ENOSYS || shared->result == -EPERM) {
		tap_skip("faults_that_wait_for_a_userfaultfd", "no userfaultfd: %s", code(shared->result));
		finish(pid);
		close(pidfd);
		cgroup_remove(&group);
		return;
	}
	while (waiting < 2 && !shared->result && poll(&poll_fd, 1, WAIT_MS) == 1 &&
	       read(uffd, &message, sizeof(message)) == sizeof(message))
		waiting += message.event == UFFD_EVENT_PAGEFAULT;
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long left = cgroup_stat(&group, "anon");
	struct uffdio_copy copy = { .dst = (uintptr_t)shared->address, .src = (uintptr_t)aligned(HUGE), .len = 4096 };
	bool refused = ioctl(uffd, UFFDIO_COPY, &copy) && errno == ESRCH;

	tap(waiting == 2 && reaped(ret) && dead && left < (long)MIB && refused, "faults_that_wait_for_a_userfaultfd",
	    "%d waiting, %s, %ld KiB left, a page that comes too late is %s", waiting, code(ret), left / 1024,
	    refused ? "refused" : "taken");
	close(uffd);
	close(pidfd);
	cgroup_remove(&group);
}

/* --- huge pages of all sorts --- */

#define HUGETLB_PAGES 6

static void maps_hugetlb(void *unused)
{
	int fd = memfd_create("huge", MFD_HUGETLB);
	char *mine = mmap(NULL, 4 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (ftruncate(fd, 2 * HUGE))
		_exit(1);
	char *ours = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	memset(mine, 1, 4 * HUGE);
	memset(ours, 1, 2 * HUGE);
	touched(4 * MIB);
	stays();
}

static void test_hugetlb(void)
{
	char number[16], before[32];

	read_text("/proc/sys/vm/nr_hugepages", before, sizeof(before));
	snprintf(number, sizeof(number), "%d", HUGETLB_PAGES);
	write_text("/proc/sys/vm/nr_hugepages", number);
	long all = read_number(HUGETLB "free_hugepages");

	if (all < HUGETLB_PAGES) {
		write_text("/proc/sys/vm/nr_hugepages", before);
		tap_skip("hugetlb_pages_are_left_to_the_victim", "this kernel has %ld of them", all < 0 ? 0 : all);
		return;
	}
	int pidfd, ret;
	pid_t pid = hold(maps_hugetlb, NULL, &pidfd);

	ret = mrelease(pidfd, 0);
	long reaped_free = read_number(HUGETLB "free_hugepages");

	let_go(pid, pidfd);
	long exited_free = read_number(HUGETLB "free_hugepages");

	pid = spawn_ready(maps_hugetlb, NULL);
	pidfd = pidfd_open_or_die(pid, 0);
	int again = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long end_free = read_number(HUGETLB "free_hugepages");

	tap(!ret && reaped(again) && dead && reaped_free == all - HUGETLB_PAGES && exited_free == all && end_free == all,
	    "hugetlb_pages_are_left_to_the_victim", "%s, %ld of %ld free after the reap, %ld after the exit", code(ret), reaped_free,
	    all, exited_free);
	close(pidfd);
	write_text("/proc/sys/vm/nr_hugepages", before);
}

static void has_huge_pages(void *group)
{
	cgroup_enter(group);
	char *memory = aligned(32 * MIB);

	madvise(memory, 32 * MIB, MADV_HUGEPAGE);
	memset(memory, 1, 32 * MIB);
	/* One of them mapped in pieces with a hole, one with two protections. */
	madvise(memory + 3 * HUGE + 5 * 4096, 7 * 4096, MADV_DONTNEED);
	mprotect(memory + 5 * HUGE + 4096, 4096, PROT_READ);
	stays();
}

static void test_huge_pages(void)
{
	struct cgroup group = cgroup_new("huge");
	int pidfd;
	pid_t pid = hold(has_huge_pages, &group, &pidfd);
	long huge = cgroup_stat(&group, "anon_thp");

	if (huge > 0) {
		int ret = mrelease(pidfd, 0);
		long left = cgroup_stat(&group, "anon");

		tap(!ret && huge >= (long)(16 * MIB) && left < (long)MIB, "transparent_huge_pages", "%s, %ld MiB huge before, %ld KiB after",
		    code(ret), huge >> 20, left >> 10);
	} else {
		tap_skip("transparent_huge_pages", "this kernel gives none");
	}
	let_go(pid, pidfd);
	cgroup_remove(&group);
}

static long own_smaps(const char *key)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	char line[256], word[64];
	long kib, found = 0;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %ld", word, &kib) == 2 && !strcmp(word, key))
			found = kib;
	if (file)
		fclose(file);
	return found;
}

#define FILE_BYTES (16 * MIB)

static char *map_file_aligned(const char *path)
{
	int fd = open(path, O_RDONLY);
	char *map = mmap(aligned(FILE_BYTES), FILE_BYTES, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, fd, 0);

	close(fd);
	read_all(map, FILE_BYTES);
	return map;
}

static void maps_huge_file(void *path)
{
	char *map = map_file_aligned(path);

	shared->result = madvise(map, FILE_BYTES, MADV_COLLAPSE) ? -errno : 0;
	read_all(map, FILE_BYTES);
	shared->pids[0] = own_smaps("FilePmdMapped:");
	stays();
}

/* A file mapped by whole page middle directory entries: one reference of the gather for each 2 MiB. */
static void test_huge_file(const char *path)
{
	const char *name = patched ? "file_mapped_by_huge_pages_is_freed" : "file_mapped_by_huge_pages_stays_on_stock";
	int pidfd;

	make_file(path, FILE_BYTES, 31);
	pid_t pid = hold(maps_huge_file, (void *)path, &pidfd);
	long huge = shared->pids[0];
	int ret = mrelease(pidfd, 0);
	long pages = resident_pages(path);

	let_go(pid, pidfd);
	if (!huge)
		tap_skip(name, "no file is mapped by huge pages here: MADV_COLLAPSE says %s", code(shared->result));
	else
		tap(!ret && (patched ? is_gone(pages, FILE_BYTES) : is_there(pages, FILE_BYTES)) &&
			    file_holds_pattern(path, FILE_BYTES, 31),
		    name, "%s, %ld KiB mapped huge, %ld of %lu pages left", code(ret), huge, pages, FILE_BYTES / 4096);
}

/* --- MMU notifiers and device memory, by lib/test_hmm.c (CONFIG_TEST_HMM) --- */

struct dmirror_command {
	uint64_t address, buffer, pages, done, faults;
};

#define DMIRROR_READ	_IOWR('H', 0x00, struct dmirror_command)
#define DMIRROR_TO_DEVICE _IOWR('H', 0x02, struct dmirror_command)
#define MIRRORED (16 * MIB)

static int open_dmirror(void)
{
	const char *path = work_path("dmirror");
	FILE *file = fopen("/proc/devices", "r");
	char line[128], name[64];
	int number, major_number = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%d %63s", &number, name) == 2 && !strcmp(name, "HMM_DMIRROR"))
			major_number = number;
	if (file)
		fclose(file);
	if (major_number < 0 || (mknod(path, S_IFCHR | 0600, makedev(major_number, 0)) && errno != EEXIST))
		return -1;
	return open(path, O_RDWR);
}

static int dmirror(int fd, unsigned long request, void *address, void *buffer)
{
	struct dmirror_command command = { (uintptr_t)address, (uintptr_t)buffer, MIRRORED / 4096 };

	return ioctl(fd, request, &command) ? -errno : 0;
}

/* Memory that a device mirrors, half of it on the device. */
static void is_mirrored(void *group)
{
	cgroup_enter(group);
	shared->pids[0] = open_dmirror();
	char *memory = touched(2 * MIRRORED);

	shared->address = memory;
	shared->result = dmirror(shared->pids[0], DMIRROR_TO_DEVICE, memory + MIRRORED, malloc(MIRRORED));
	stays();
}

/* One of several that keep the device busy: its notifier has to wait for them, and a reaper may not wait. */
static void keeps_busy(void *device)
{
	char *buffer = malloc(MIRRORED);

	dmirror((long)device, DMIRROR_READ, shared->address, buffer);
	report_ready();
	/* Fails when the memory is gone. */
	while (!dmirror((long)device, DMIRROR_READ, shared->address, buffer))
		;
}

/* The device is idle again, well before the kernel has asked its notifier for the last time. */
static void ends_busy(void *pids)
{
	usleep(300000);
	for (int i = 0; i < 4; i++)
		kill(((pid_t *)pids)[i], SIGKILL);
}

/*
 * Reaps one victim that is held. Without @flags until the notifier need not wait: how often it had to, or another error. With
 * REAP_KILL once, in a call that has to ask again by itself: whether it had to, or an error.
 */
static int reap_mirrored(struct cgroup *group, unsigned int flags, int *left)
{
	pid_t pid = spawn_ready(is_mirrored, group), busy[4];
	int pidfd = pidfd_open_or_die(pid, 0), ret, again = 0;
	int device = syscall(SYS_pidfd_getfd, pidfd, shared->pids[0], 0);

	for (int i = 0; i < 4; i++)
		busy[i] = spawn(keeps_busy, (void *)(long)device);
	wait_for(&shared->ready, 5);
	ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACEEXIT);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
	if (flags) {
		pid_t helper = spawn(ends_busy, busy);
		double begun = now();

		ret = mrelease(pidfd, flags);
		/* It sleeps for a tenth of a second between two attempts, and for nothing else. */
		again = now() - begun > 0.09;
		waitpid(helper, NULL, 0);
	} else {
		while ((ret = mrelease(pidfd, 0)) == -EAGAIN && again < WAIT_MS) {
			again++;
			usleep(1000);
		}
	}
	*left = cgroup_stat(group, "anon") / 1024;
	for (int i = 0; i < 4; i++)
		finish(busy[i]);
	let_go(pid, pidfd);
	close(device);
	return ret ?: again;
}

static void test_mmu_notifier(void)
{
	int probe = open_dmirror(), ret = 0, tries, left;

	if (probe < 0) {
		tap_skip("mmu_notifier_that_would_wait", "this kernel is without lib/test_hmm.c");
		if (patched)
			tap_skip("reap_kill_asks_a_notifier_again", "this kernel is without lib/test_hmm.c");
		tap_skip("device_private_memory", "this kernel is without lib/test_hmm.c");
		return;
	}
	close(probe);
	struct cgroup group = cgroup_new("mirrored");

	for (tries = 0; tries < 20 && !ret; tries++)
		ret = reap_mirrored(&group, 0, &left);
	tap(ret > 0 && left < 1024, "mmu_notifier_that_would_wait", "%s %d times, then 0 in the %d. victim, %d KiB left",
	    ret < 0 ? code(ret) : "EAGAIN", ret < 0 ? 1 : ret, tries, left);

	if (patched) {
		ret = 0;
		for (tries = 0; tries < 20 && !ret; tries++)
			ret = reap_mirrored(&group, PROCESS_MRELEASE_REAP_KILL, &left);
		tap(ret > 0 && left < 1024, "reap_kill_asks_a_notifier_again", "%s for the %d. victim, %d KiB left",
		    ret < 0 ? code(ret) : "0", tries, left);
	}

	pid_t pid = spawn_ready(is_mirrored, &group);
	int pidfd = pidfd_open_or_die(pid, 0), moved = shared->result;

	/* The victim's own exit may be what the notifier would have to wait for. */
	ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	left = cgroup_stat(&group, "anon") / 1024;
	tap(!moved && (reaped(ret) || ret == -EAGAIN) && dead && left < 1024, "device_private_memory", "moved: %s, %s, %d KiB left",
	    code(moved), code(ret), left);
	close(pidfd);
	cgroup_remove(&group);
}

/* --- against khugepaged and migration --- */

static const char *file_path;
static struct cgroup *race_group;

/* Small pages that want to be huge ones, half of them written again and again, and a file. */
static void is_worked_on(void *unused)
{
	cgroup_enter(race_group);
	char *memory = aligned(FILE_BYTES);

	madvise(memory, FILE_BYTES, MADV_NOHUGEPAGE);
	memset(memory, 1, FILE_BYTES);
	madvise(memory, FILE_BYTES, MADV_HUGEPAGE);
	madvise(map_file_aligned(file_path), FILE_BYTES, MADV_HUGEPAGE);
	shared->address = memory;
	report_ready();
	for (size_t i = 0;; i = (i + 4096) % (FILE_BYTES / 2))
		memory[i]++;
}

static void collapses(void *pid)
{
	int pidfd = pidfd_open_or_die((long)pid, 0);
	struct iovec all = { shared->address, FILE_BYTES };

	do
		report_ready();
	while (syscall(SYS_process_madvise, pidfd, &all, 1, MADV_COLLAPSE, 0) >= 0 || errno != ESRCH);
}

static void moves(void *pid)
{
	unsigned long nodes[2] = { 1, 2 };

	do {
		report_ready();
		unsigned long from = nodes[0];

		nodes[0] = nodes[1];
		nodes[1] = from;
	} while (syscall(SYS_migrate_pages, (long)pid, 64, &nodes[0], &nodes[1]) >= 0 || errno != ESRCH);
}

/* Reaps victims whose pages @other is at; @counter of /proc/vmstat has to say that it was. */
static void test_race(const char *name, victim_fn other, const char *counter)
{
	struct cgroup group = cgroup_new("race");
	long before = read_key("/proc/vmstat", counter);
	int wrong = 0;

	race_group = &group;
	make_file(file_path, FILE_BYTES, 32);
	for (int i = 0; i < rounds; i++) {
		pid_t pid = spawn_ready(is_worked_on, NULL);
		int pidfd = pidfd_open_or_die(pid, 0);
		pid_t worker = spawn(other, (void *)(long)pid);

		wait_for(&shared->ready, 2 + i % 3);
		usleep(i * 1009 % 20000);
		int ret = kill_and_reap(pidfd, i % 4 || !patched ? 0 : PROCESS_MRELEASE_KEEP_FILE);

		if (!reaped(ret) || !killed(pid, pidfd))
			wrong++;
		finish(worker);
		close(pidfd);
	}
	long worked = read_key("/proc/vmstat", counter) - before, left = cgroup_stat(&group, "anon");

	tap(!wrong && worked > 0 && left < (long)MIB && file_holds_pattern(file_path, FILE_BYTES, 32), name,
	    "%d of %d wrong, %s %ld, %ld KiB left", wrong, rounds, counter, worked, left / 1024);
	cgroup_remove(&group);
}

static void test_khugepaged(void)
{
	static const char *const settings[] = { THP "khugepaged/scan_sleep_millisecs", THP "khugepaged/alloc_sleep_millisecs",
						THP "khugepaged/pages_to_scan" };
	char before[3][32];

	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++)
		read_text(settings[i], before[i], sizeof(before[i]));
	if (!write_text(THP "khugepaged/scan_sleep_millisecs", "1")) {
		tap_skip("reap_against_khugepaged", "this kernel has no transparent huge pages");
		return;
	}
	write_text(THP "khugepaged/alloc_sleep_millisecs", "1");
	write_text(THP "khugepaged/pages_to_scan", "65536");
	test_race("reap_against_khugepaged", collapses, "thp_collapse_alloc");
	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++)
		write_text(settings[i], before[i]);
}

static void test_migration(void)
{
	if (access("/sys/devices/system/node/node1", F_OK))
		tap_skip("reap_against_migration", "this machine has one memory node");
	else
		test_race("reap_against_migration", moves, "pgmigrate_success");
}

int main(void)
{
	rounds = part_of_kills(50);
	file_path = strdup(work_path("huge"));
	patched = has_flag(PROCESS_MRELEASE_KEEP_FILE);
	shared_new();
	test_userfaultfd();
	test_hugetlb();
	test_huge_pages();
	test_huge_file(file_path);
	test_mmu_notifier();
	test_khugepaged();
	test_migration();
	unlink(file_path);
	return tap_end();
}
