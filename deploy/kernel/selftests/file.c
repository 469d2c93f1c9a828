// SPDX-License-Identifier: GPL-2.0
/* Page cache of the victim: what is freed with it, and what must stay, with the right contents. */
#include "mapped.h"
#include <linux/futex.h>

static size_t file_bytes = 256 * MIB;
static bool patched;

static void test_exclusive(const char *path)
{
	struct cgroup group = cgroup_new("file");
	struct mapping mapping = { path, file_bytes, PROT_READ, MAP_PRIVATE, &group };
	int ret;

	make_file(path, file_bytes, 1);
	bool ok = reap_mapper(&mapping, 0, &ret);
	long charged = cgroup_stat(&group, "file"), pages = resident_pages(path);

	tap(ok && (patched ? is_gone(pages, file_bytes) && is_gone(charged / 4096, file_bytes) : is_there(pages, file_bytes)),
	    patched ? "clean_exclusive_file_is_freed" : "clean_exclusive_file_stays_on_stock",
	    "%s, %ld of %zu pages, memory.stat file %ld KiB", code(ret), pages, file_bytes / 4096, charged >> 10);
	figure("file_left", "%ld", charged, "bytes");
	tap(file_holds_pattern(path, file_bytes, 1), "its_contents_are_read_again", "right");

	make_file(path, file_bytes, 1);
	double seconds = reap_held(maps_file, &mapping, 0, &ret);

	pages = resident_pages(path);
	tap(!ret && (patched ? is_gone(pages, file_bytes) : is_there(pages, file_bytes)),
	    patched ? "the_reaper_alone_frees_it_too" : "the_reaper_alone_leaves_it_on_stock", "%s, %ld pages, %.0f ms", code(ret),
	    pages, seconds * 1e3);
	figure("file_reap_rate", "%.2f", file_bytes / 1e9 / seconds, "GB/s");

	if (patched) {
		make_file(path, file_bytes, 1);
		ok = reap_mapper(&mapping, PROCESS_MRELEASE_KEEP_FILE, &ret);
		pages = resident_pages(path);
		tap(ok && is_there(pages, file_bytes), "keep_file_with_reap_kill_keeps_it", "%s, %ld pages", code(ret), pages);
		seconds = reap_held(maps_file, &mapping, PROCESS_MRELEASE_KEEP_FILE, &ret);
		pages = resident_pages(path);
		tap(!ret && is_there(pages, file_bytes), "keep_file_alone_keeps_it", "%s, %ld pages, %.0f ms", code(ret), pages,
		    seconds * 1e3);
		figure("file_kept_reap_rate", "%.2f", file_bytes / 1e9 / seconds, "GB/s");
	}
	cgroup_remove(&group);
}

/* Pages of the mapping that are parts of large folios, by /proc/kpageflags (include/uapi/linux/kernel-page-flags.h). */
static long pages_in_large_folios(const char *map, size_t bytes)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY), flags_file = open("/proc/kpageflags", O_RDONLY);
	uint64_t entry, flags;
	long found = 0;

	if (pagemap < 0 || flags_file < 0)
		return -1;
	for (size_t i = 0; i < bytes; i += 4096)
		if (pread(pagemap, &entry, 8, ((uintptr_t)map + i) / 4096 * 8) == 8 && entry >> 63 &&
		    pread(flags_file, &flags, 8, (entry & ((1ULL << 55) - 1)) * 8) == 8)
			found += (flags >> 15 & 3) != 0; /* KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL */
	close(pagemap);
	close(flags_file);
	return found;
}

/* Large folios that the victim maps in pieces: a private copy takes the place of every 11th page. */
static void maps_pieces(void *argument)
{
	struct mapping *mapping = argument;
	char *map = map_file(mapping->path, mapping->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	read_all(map, mapping->bytes);
	for (size_t i = 0; i < mapping->bytes; i += 11 * 4096)
		map[i] = 1;
	report_ready();
	for (;;)
		pause();
}

static void test_large_folios(const char *path)
{
	struct mapping mapping = { path, 16 * MIB };

	make_file(path, mapping.bytes, 14);
	file_holds_pattern(path, mapping.bytes, 14);
	char *mine = map_file(path, mapping.bytes, PROT_READ, MAP_PRIVATE);

	read_all(mine, mapping.bytes);
	long large = pages_in_large_folios(mine, mapping.bytes);

	munmap(mine, mapping.bytes);
	if (large <= 0) {
		tap_skip("large_folios_mapped_in_pieces", "this kernel has none for this file system");
		return;
	}
	pid_t pid = spawn_ready(maps_pieces, &mapping);
	int pidfd = pidfd_open_or_die(pid, 0);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long left = resident_pages(path);

	close(pidfd);
	/* A small folio that was copied is mapped by nobody when the reap comes, and stays. */
	long small = mapping.bytes / 4096 - large;

	tap(reaped(ret) && dead &&
		    (patched ? is_gone(left > small ? left - small : 0, mapping.bytes) : is_there(left, mapping.bytes)) &&
		    file_holds_pattern(path, mapping.bytes, 14),
	    "large_folios_mapped_in_pieces", "%s, %ld pages in large folios before, %ld pages left", code(ret), large, left);
}

static void reaps_as_nobody(void *pidfd)
{
	if (setresuid(65534, 65534, 65534))
		_exit(1);
	shared->result = mrelease((long)pidfd, 0);
}

/* Who may not kill the process may reap it, as ever, but not cost others their page cache. */
static void test_stranger(const char *path)
{
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };
	int pidfd;

	make_file(path, mapping.bytes, 15);
	pid_t pid = hold(maps_file, &mapping, &pidfd);

	shared->result = 1;
	waitpid(spawn(reaps_as_nobody, (void *)(long)pidfd), NULL, 0);
	long pages = resident_pages(path);

	tap(!shared->result && is_there(pages, mapping.bytes), "another_user_reaps_and_frees_no_file", "%s, %ld pages",
	    code(shared->result), pages);
	let_go(pid, pidfd);
}

/* With something on its list of robust futexes, which a call waits for as long as the victim is held. */
static void maps_file_and_owns(void *mapping)
{
	static struct {
		struct robust_list link;
		uint32_t futex;
	} owned;
	static struct robust_list_head head = { .list = { &owned.link }, .futex_offset = sizeof(owned.link) };

	owned.link.next = &head.list;
	if (syscall(SYS_set_robust_list, &head, sizeof(head)))
		_exit(1);
	maps_file(mapping);
}

static void reaps_without_flags(void *pidfd)
{
	mrelease((long)pidfd, 0);
	_exit(0);
}

/*
 * A call that asks for file folios is killed while it waits. What it asked for stays asked for: the victim's exit frees them,
 * and so does, before that, another call that asks for nothing of the kind.
 */
static void test_interrupted(const char *path, bool call_again)
{
	const char *name = call_again ? "keep_file_keeps_nothing_that_another_call_asked_for" : "what_an_interrupted_call_asked_for_is_freed_at_exit";
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };
	int pidfd, ret = 0, waits = 0;

	make_file(path, mapping.bytes, 23);
	pid_t pid = hold(maps_file_and_owns, &mapping, &pidfd);
	pid_t caller = spawn(reaps_without_flags, (void *)(long)pidfd);

	/* It has nothing else to wait for in a state that only a kill ends. */
	for (int i = 0; i < 1000 && waits < 5; i++) {
		waits += state_of(caller) == 'D';
		usleep(1000);
	}
	finish(caller);
	long before = resident_pages(path);

	if (call_again)
		ret = mrelease(pidfd, PROCESS_MRELEASE_KEEP_FILE);
	else
		let_go(pid, pidfd);
	long after = resident_pages(path);

	if (call_again)
		let_go(pid, pidfd);
	tap(waits == 5 && is_there(before, mapping.bytes) && !ret && is_gone(after, mapping.bytes), name,
	    "%s, seen to wait %d times, %ld pages before, %ld after", code(ret), waits, before, after);
}

/* A process that nobody reaps leaves its page cache, on every kernel. */
static void test_plain_exit(const char *path)
{
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };

	make_file(path, mapping.bytes, 2);
	pid_t pid = spawn_ready(maps_file, &mapping);

	finish(pid);
	long pages = resident_pages(path);

	tap(is_there(pages, mapping.bytes), "a_kill_without_reaping_frees_no_file", "%ld pages", pages);
}

static void test_second_mapper(const char *path)
{
	struct mapping mapping = { path, 32 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	make_file(path, mapping.bytes, 3);
	char *mine = map_file(path, mapping.bytes, PROT_READ, MAP_PRIVATE);

	read_all(mine, mapping.bytes);
	bool ok = reap_mapper(&mapping, 0, &ret);
	long pages = resident_pages(path);

	tap(ok && is_there(pages, mapping.bytes) && holds_pattern(mine, mapping.bytes, 0, 3), "file_with_a_second_mapper_stays",
	    "%s, %ld pages, contents right", code(ret), pages);
	munmap(mine, mapping.bytes);

	make_file(path, mapping.bytes, 3);
	mine = map_file(path, mapping.bytes / 2, PROT_READ, MAP_SHARED);
	read_all(mine, mapping.bytes / 2);
	ok = reap_mapper(&mapping, 0, &ret);
	pages = resident_pages(path);
	/* A large folio may lie across the middle; the half that is mapped stays in any case. */
	bool half = pages >= (long)(mapping.bytes / 2 / 4096) &&
		    (patched ? pages < (long)(mapping.bytes / 4096 * 5 / 8) : is_there(pages, mapping.bytes));

	tap(ok && half && holds_pattern(mine, mapping.bytes / 2, 0, 3), "another_mapper_of_half_of_it", "%s, %ld of %zu pages",
	    code(ret), pages, mapping.bytes / 4096);
	munmap(mine, mapping.bytes / 2);
}

static void dirties_shared(void *argument)
{
	struct mapping *mapping = argument;
	char *map = map_file(mapping->path, mapping->bytes, PROT_READ | PROT_WRITE, MAP_SHARED);

	fill_pattern(map, mapping->bytes, 0, 5);
	report_ready();
	for (;;)
		pause();
}

static void test_dirty_shared(const char *path)
{
	struct mapping mapping = { path, 32 * MIB };

	make_file(path, mapping.bytes, 4);
	pid_t pid = spawn_ready(dirties_shared, &mapping);
	int pidfd = pidfd_open_or_die(pid, 0);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	close(pidfd);
	sync();
	write_text("/proc/sys/vm/drop_caches", "3");
	tap(reaped(ret) && dead && file_holds_pattern(path, mapping.bytes, 5), "dirty_shared_pages_reach_the_disk",
	    "%s, contents right after drop_caches", code(ret));
}

/* Written by write() and not yet on disk, then mapped privately by the victim. */
static void test_dirty_cache(const char *path)
{
	struct mapping mapping = { path, 16 * MIB, PROT_READ, MAP_PRIVATE };
	int fd, ret;
	static char block[MIB];

	make_file(path, mapping.bytes, 6);
	fd = open(path, O_RDWR);
	for (size_t at = 0; at < mapping.bytes; at += MIB) {
		fill_pattern(block, MIB, at, 7);
		if (pwrite(fd, block, MIB, at) != MIB)
			break;
	}
	bool ok = reap_mapper(&mapping, 0, &ret) && file_holds_pattern(path, mapping.bytes, 7);

	fsync(fd);
	close(fd);
	write_text("/proc/sys/vm/drop_caches", "3");
	tap(ok && file_holds_pattern(path, mapping.bytes, 7), "dirty_cache_mapped_privately_is_not_lost", "%s", code(ret));
}

static void writes_privately(void *argument)
{
	struct mapping *mapping = argument;
	char *map = map_file(mapping->path, mapping->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);

	for (size_t i = 0; i < mapping->bytes; i += 2 * 4096)
		map[i] = 0x55;
	report_ready();
	for (;;)
		pause();
}

static void test_private_copies(const char *path)
{
	struct mapping mapping = { path, 16 * MIB };

	make_file(path, mapping.bytes, 8);
	pid_t pid = spawn_ready(writes_privately, &mapping);
	int pidfd = pidfd_open_or_die(pid, 0);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);

	tap(reaped(ret) && dead && file_holds_pattern(path, mapping.bytes, 8), "private_copies_never_reach_the_file", "%s", code(ret));
	close(pidfd);
}

static void test_mlocked_by_another(const char *path)
{
	struct mapping mapping = { path, 8 * MIB, PROT_READ, MAP_PRIVATE };
	int ret;

	make_file(path, mapping.bytes, 10);
	char *mine = map_file(path, mapping.bytes, PROT_READ, MAP_SHARED);

	mlock(mine, mapping.bytes);
	bool ok = reap_mapper(&mapping, 0, &ret);
	long pages = resident_pages(path);

	tap(ok && pages == (long)(mapping.bytes / 4096) && holds_pattern(mine, mapping.bytes, 0, 10), "mlocked_by_another_stays",
	    "%s, %ld pages", code(ret), pages);
	munlock(mine, mapping.bytes);
	munmap(mine, mapping.bytes);
}

static void locks(void *argument)
{
	struct mapping *mapping = argument;

	mlock(map_file(mapping->path, mapping->bytes, PROT_READ, MAP_PRIVATE), mapping->bytes);
	report_ready();
	for (;;)
		pause();
}

/* mlock() is the victim's own wish, and goes with it. */
static void test_mlocked_by_victim(const char *path)
{
	struct mapping mapping = { path, 32 * MIB };
	int ret;

	make_file(path, mapping.bytes, 18);
	reap_held(locks, &mapping, 0, &ret);
	long pages = resident_pages(path);

	tap(!ret && (patched ? is_gone(pages, mapping.bytes) : is_there(pages, mapping.bytes)) &&
		    file_holds_pattern(path, mapping.bytes, 18),
	    "mlocked_by_the_victim_itself", "%s, %ld of %zu pages left", code(ret), pages, mapping.bytes / 4096);
}

/* Pages that a pipe holds have a reference and no mapping. */
static void test_spliced(const char *path)
{
	struct mapping mapping = { path, 64 * 1024, PROT_READ, MAP_PRIVATE };
	static char back[64 * 1024];
	int ends[2], fd, ret;
	ssize_t got = 0, more;

	make_file(path, mapping.bytes, 11);
	fd = open(path, O_RDONLY);
	if (pipe(ends)) {
		tap(false, "pages_in_a_pipe_stay_right", "no pipe: %s", strerror(errno));
		return;
	}
	while (got < (ssize_t)mapping.bytes && (more = splice(fd, NULL, ends[1], NULL, mapping.bytes - got, SPLICE_F_NONBLOCK)) > 0)
		got += more;
	bool ok = reap_mapper(&mapping, 0, &ret);

	for (ssize_t at = 0; at < got; at += more) {
		more = read(ends[0], back + at, got - at);
		if (more <= 0)
			break;
	}
	tap(ok && got >= 4096 && holds_pattern(back, got, 0, 11), "pages_in_a_pipe_stay_right", "%s, %zd KiB", code(ret), got / 1024);
	close(ends[0]);
	close(ends[1]);
	close(fd);
}

static void forks(void *argument)
{
	struct mapping *mapping = argument;
	char *map = map_file(mapping->path, mapping->bytes, PROT_READ, MAP_PRIVATE);

	read_all(map, mapping->bytes);
	pid_t child = fork();

	if (!child) {
		report_ready();
		wait_for(&shared->go, 1);
		shared->result = holds_pattern(map, mapping->bytes, 0, 12) ? 1 : -1;
		_exit(0);
	}
	shared->pids[0] = child;
	report_ready();
	for (;;)
		pause();
}

static void test_forked_child(const char *path)
{
	struct mapping mapping = { path, 16 * MIB };

	make_file(path, mapping.bytes, 12);
	shared_new();
	pid_t pid = spawn(forks, &mapping);

	wait_for(&shared->ready, 2);
	int pidfd = pidfd_open_or_die(pid, 0);
	int child = pidfd_open_or_die(shared->pids[0], 0);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd), lives = !kill(shared->pids[0], 0);

	__atomic_store_n(&shared->go, 1, __ATOMIC_SEQ_CST);
	gone_within(child);
	tap(reaped(ret) && dead && lives && shared->result == 1, "a_forked_child_with_its_own_mm_lives_on", "%s", code(ret));
	close(pidfd);
	close(child);
}

/* Program text: a copy of ourselves that only the victim runs. */
static void test_program_text(const char *path, const char *self)
{
	char command[512];

	unlink(path);
	snprintf(command, sizeof(command), "cp '%s' '%s' && sync '%s'", self, path, path);
	if (system(command))
		printf("# no copy of the program\n");
	int ends[2], first = 0;

	if (pipe(ends)) {
		tap(false, "program_text", "no pipe: %s", strerror(errno));
		return;
	}
	fflush(stdout);
	pid_t pid = fork();

	if (!pid) {
		dup2(ends[1], 1);
		close(ends[0]);
		close(ends[1]);
		execl(path, path, "--sleep", NULL);
		_exit(127);
	}
	close(ends[1]);
	if (read(ends[0], &first, 1) != 1)
		printf("# the program did not start\n");
	int pidfd = pidfd_open_or_die(pid, 0);
	long before = resident_pages(path);
	int ret = kill_and_reap(pidfd, 0);
	bool dead = killed(pid, pidfd);
	long after = resident_pages(path);

	tap(reaped(ret) && dead && (patched ? after < before / 2 : after == before), "program_text", "%s, %ld of %ld pages left",
	    code(ret), after, before);
	close(ends[0]);
	close(pidfd);
	unlink(path);
}

/*
 * What share of a reap is LRU work (folio_mark_accessed): the same file pages with young page table entries and with old
 * ones, all kept. The classic lists are what moves folios at unmap; MGLRU only counts the access.
 */
static void maps_old(void *argument)
{
	struct mapping *mapping = argument;
	char path[64];

	read_all(map_file(mapping->path, mapping->bytes, PROT_READ, MAP_PRIVATE), mapping->bytes);
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", getpid());
	write_text(path, "1");
	report_ready();
	for (;;)
		pause();
}

static void test_lru_work(const char *path)
{
	const char *switch_path = "/sys/kernel/mm/lru_gen/enabled";
	struct mapping mapping = { path, 64 * MIB, PROT_READ, MAP_PRIVATE };
	unsigned int keep = patched ? PROCESS_MRELEASE_KEEP_FILE : 0;
	double young = 1e9, old = 1e9, seconds;
	char switched[16];
	long activated[2] = { 0, 0 }, before;
	int ret, failed = 0;

	read_text(switch_path, switched, sizeof(switched));
	write_text(switch_path, "n");
	for (int i = 0; i < 5; i++) {
		/* read() once: the folio has been referenced, the next mark moves it. */
		make_file(path, mapping.bytes, 13);
		file_holds_pattern(path, mapping.bytes, 13);
		before = read_key("/proc/vmstat", "pgactivate");
		seconds = reap_held(maps_file, &mapping, keep, &ret);
		activated[0] += read_key("/proc/vmstat", "pgactivate") - before;
		young = seconds < young ? seconds : young;
		failed += !!ret;

		make_file(path, mapping.bytes, 13);
		file_holds_pattern(path, mapping.bytes, 13);
		seconds = reap_held(maps_old, &mapping, keep, &ret);
		old = seconds < old ? seconds : old;
		failed += !!ret;

		if (patched) {
			make_file(path, mapping.bytes, 13);
			file_holds_pattern(path, mapping.bytes, 13);
			before = read_key("/proc/vmstat", "pgactivate");
			reap_held(maps_file, &mapping, 0, &ret);
			activated[1] += read_key("/proc/vmstat", "pgactivate") - before;
			failed += !!ret;
		}
	}
	write_text(switch_path, switched);
	figure("lru_share_of_reap", "%.0f", 100 * (young - old) / young, "percent");
	tap(!failed && activated[0] > 0, "a_reap_that_keeps_files_marks_them_accessed", "%ld pages activated in 5 reaps, %.1f ms young, %.1f ms old",
	    activated[0], young * 1e3, old * 1e3);
	if (patched)
		tap(!failed && activated[1] * 20 < activated[0], "a_reap_that_frees_files_does_not_move_them_first",
		    "%ld pages activated in 5 reaps", activated[1]);
}

int main(int argc, char **argv)
{
	const char *path = strdup(work_path("file"));

	if (argc > 1 && !strcmp(argv[1], "--sleep")) {
		if (write(1, "x", 1) == 1)
			pause();
		return 0;
	}
	patched = has_flag(PROCESS_MRELEASE_KEEP_FILE);
	shared_new();
	test_exclusive(path);
	test_plain_exit(path);
	test_stranger(path);
	if (patched) {
		test_interrupted(path, true);
		test_interrupted(path, false);
	}
	test_second_mapper(path);
	test_dirty_shared(path);
	test_dirty_cache(path);
	test_private_copies(path);
	test_mlocked_by_another(path);
	test_mlocked_by_victim(path);
	test_spliced(path);
	test_forked_child(path);
	test_program_text(strdup(work_path("program")), argv[0]);
	test_large_folios(path);
	test_lru_work(path);
	unlink(path);
	return tap_end();
}
