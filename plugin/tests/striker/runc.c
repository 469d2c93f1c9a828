/*
 * Stands in for a runtime at the gate: takes a runtime's command line, opens the container's state file once, and then
 * does to its init what the command says.
 *
 *   runc [--root DIR] [flags] kill [--all] ID [SIGNAL]
 *   runc [--root DIR] [flags] delete [-f|--force] ID
 *   runc [--root DIR] [flags] ANYTHING ID             opens the file, and that is all
 *
 * Prints "opened" when it is through the gate. RUNC_IDLE in the environment: it signals nobody. RUNC_SLOW: it signals when
 * its standard input ends.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number_of(const char *word)
{
	static const struct { const char *name; int number; } names[] = {
		{"KILL", SIGKILL}, {"TERM", SIGTERM}, {"USR1", SIGUSR1}};

	if (isdigit((unsigned char)*word))
		return atoi(word);
	if (!strncmp(word, "SIG", 3))
		word += 3;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(word, names[i].name))
			return names[i].number;
	return SIGTERM;
}

int main(int count, char **arguments)
{
	const char *root = ".", *verb = "", *id = "", *name = "SIGTERM";
	int force = 0, operands = 0;
	char path[4096], state[1 << 16], *found;

	for (int i = 1; i < count; i++) {
		const char *word = arguments[i];

		if (!strcmp(word, "--root"))
			root = arguments[++i];
		else if (!strcmp(word, "--log") || !strcmp(word, "--log-format"))
			i++;
		else if (!strcmp(word, "-f") || !strcmp(word, "--force"))
			force = 1;
		else if (*word != '-') {
			if (operands == 0)
				verb = word;
			else if (operands == 1)
				id = word;
			else
				name = word;
			operands++;
		}
	}
	snprintf(path, sizeof(path), "%s/%s/%s", root, id, getenv("RUNC_FILE") ?: "state.json");
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0) {
		fprintf(stderr, "runc: %s: %s\n", path, strerror(errno));
		return 1;
	}
	printf("opened\n");
	fflush(stdout);
	ssize_t length = read(file, state, sizeof(state) - 1);

	state[length > 0 ? length : 0] = 0;
	found = strstr(state, "\"init_process_pid\":");
	if (getenv("RUNC_SLOW"))
		while (read(0, path, sizeof(path)) > 0)
			;
	if (getenv("RUNC_IDLE") || !found)
		return 0;
	if (!strcmp(verb, "kill") && kill(atoi(found + 19), number_of(name))) {
		fprintf(stderr, "runc: container not running\n");
		return 1;
	}
	if (!strcmp(verb, "delete") && force)
		kill(atoi(found + 19), SIGKILL);
	return 0;
}
