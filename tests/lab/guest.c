/*
 * lab: the one program that the lab puts into its guests beside busybox.
 *
 *   lab agent TTY            run commands that the host sends over a serial line
 *   lab do WORD[=ARG] ...    a process that charges memory, told word by word
 *   lab count                pages and folios per cgroup, from /proc/kpage*
 *   lab files PATH ...       inode numbers, and contents of regular files
 *   lab frames               every charged frame, from /proc/kpage*
 *   lab pagemap PID ...      what processes map and have swapped
 *   lab verify FILE          whether processes still have what "fill" wrote
 *   lab many DIR FIRST N FILES EACH  small zombies under DIR, pages of files in FILES
 *
 * Linked statically, so that nothing but its own pages is charged on the way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/perf_event.h>
#include <linux/udmabuf.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static unsigned long PAGE; /* 4, 16 or 64 KiB */
#define LARGEST_PAGE (64UL << 10)

static void die(const char *what)
{
	dprintf(2, "lab: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void read_all(int fd, void *buffer, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = read(fd, (char *)buffer + done, size - done);
		if (n <= 0)
			die("read");
		done += n;
	}
}

static void write_all(int fd, const void *buffer, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = write(fd, (const char *)buffer + done, size - done);
		if (n <= 0)
			die("write");
		done += n;
	}
}

/* --- agent ------------------------------------------------------------- */

/*
 * Request: u32 size, then argv as strings with a NUL after each.
 * Reply: u32 exit status (128 + signal), u32 size, then stdout and stderr.
 */
static uint32_t run(char **argv, char **output, uint32_t *size)
{
	int fds[2], status;
	size_t room = 1 << 16, used = 0;
	char *buffer = malloc(room);
	ssize_t n;

	if (pipe2(fds, O_CLOEXEC))
		die("pipe");
	pid_t pid = fork();
	if (!pid) {
		dup2(fds[1], 1);
		dup2(fds[1], 2);
		execvp(argv[0], argv);
		die(argv[0]);
	}
	close(fds[1]);
	while ((n = read(fds[0], buffer + used, room - used)) > 0) {
		used += n;
		if (used == room)
			buffer = realloc(buffer, room *= 2);
	}
	close(fds[0]);
	waitpid(pid, &status, 0);
	*output = buffer;
	*size = used;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static _Noreturn void agent(const char *path)
{
	struct termios raw;
	int tty = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (tty < 0)
		die(path);
	if (!tcgetattr(tty, &raw)) { /* not a virtio port, which is raw */
		cfmakeraw(&raw);
		tcsetattr(tty, TCSANOW, &raw);
	}
	write_all(tty, "LAB\n", 4);
	for (;;) {
		uint32_t size, head[2];
		char **argv, *request, *output;
		int argc = 0;

		read_all(tty, &size, sizeof(size));
		request = malloc(size);
		argv = calloc(size + 1, sizeof(*argv));
		read_all(tty, request, size);
		for (char *p = request; p < request + size; p += strlen(p) + 1)
			argv[argc++] = p;
		head[0] = run(argv, &output, &head[1]);
		write_all(tty, head, sizeof(head));
		write_all(tty, output, head[1]);
		free(output);
		free(argv);
		free(request);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			; /* as process 1: reap what other processes left behind */
	}
}

/* --- do ---------------------------------------------------------------- */

static char *region; /* what touch, mlock and so on work upon */
static size_t region_size;

static size_t size_of(const char *text)
{
	char *end;
	size_t n = strtoul(text, &end, 0);

	return n << (*end == 'K' ? 10 : *end == 'M' ? 20 : 0);
}

static void map(size_t size, int flags, int fd)
{
	/* aligned so that a huge page fits: what a table of 8-byte entries maps */
	size_t huge = PAGE / 8 * PAGE;
	char *room = mmap(NULL, size + huge, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	room = (char *)(((uintptr_t)room + huge - 1) & ~(huge - 1));
	region = mmap(room, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	if (region == MAP_FAILED)
		die("mmap");
	region_size = size;
}

static void map_file(const char *path, int flags)
{
	struct stat st;
	int mode = flags & MAP_SHARED ? O_RDWR : O_RDONLY;
	int fd = open(path, mode | O_NOATIME);

	if (fd < 0 || fstat(fd, &st))
		die(path);
	map(st.st_size, flags, fd);
	close(fd);
}

static void touch(int write_too)
{
	for (size_t i = 0; i < region_size; i += PAGE) {
		volatile char *p = region + i;
		if (write_too)
			*p = 1 + i / PAGE;
		else
			(void)*p;
	}
}

static void advise(int advice)
{
	if (madvise(region, region_size, advice))
		die("madvise");
}

static void join(const char *directory)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/cgroup.procs", directory);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1)
		die(path);
	close(fd);
}

static void read_file(const char *path, int flags)
{
	static char buffer[1 << 16];
	int fd = open(path, O_RDONLY | flags);

	if (fd < 0)
		die(path);
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

/* argument: SIZE:PATH */
static void write_file(char *argument)
{
	static char buffer[1 << 16];
	char *path = strchr(argument, ':') + 1;
	size_t size = size_of(argument);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		die(path);
	memset(buffer, 'x', sizeof(buffer));
	while (size) {
		size_t n = size < sizeof(buffer) ? size : sizeof(buffer);
		write_all(fd, buffer, n);
		size -= n;
	}
	close(fd);
}

/* A file that has all its memory, and nothing in it. */
static void reserve(char *argument)
{
	char *path = strchr(argument, ':') + 1;
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || fallocate(fd, 0, 0, size_of(argument)))
		die(path);
	close(fd);
}

static void sync_file(const char *path)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || fsync(fd))
		die(path);
	close(fd);
}

/* Drop the clean, unmapped page cache of a file. */
static void forget(const char *path)
{
	int fd = open(path, O_RDONLY | O_NOATIME);

	if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		die(path);
	close(fd);
}

/* Print how many pages of the file are in the page cache. */
static void resident(const char *path)
{
	static unsigned char in_core[1 << 16];
	size_t n = 0;

	map_file(path, MAP_SHARED);
	if (mincore(region, region_size, in_core))
		die("mincore");
	for (size_t i = 0; i < (region_size + PAGE - 1) / PAGE; i++)
		n += in_core[i] & 1;
	printf("%zu\n", n);
}

/* argument: PRIORITY:DEVICE, with a swap header on it */
static void swap_on(char *argument)
{
	if (swapon(strchr(argument, ':') + 1, SWAP_FLAG_PREFER | atoi(argument)))
		die(argument);
}

/* Nobody maps its rings; the descriptor stays open. */
static int make_ring(int entries)
{
	static char params[120]; /* struct io_uring_params */
	memset(params, 0, sizeof(params));
	int fd = syscall(SYS_io_uring_setup, entries, params);

	if (fd < 0)
		die("io_uring_setup");
	return fd;
}

/* Pin the region's pages as a registered buffer of an io_uring. */
static void pin(void)
{
	struct iovec buffer = { region, region_size };

	if (syscall(SYS_io_uring_register, make_ring(1), 0 /* REGISTER_BUFFERS */,
		    &buffer, 1))
		die("io_uring_register");
}

/* An inotify group that only an io_uring has: as a file registered with it. */
static void fix_inotify(const char *path)
{
	int fd = inotify_init();

	if (inotify_add_watch(fd, path, IN_CREATE) < 0)
		die(path);
	if (syscall(SYS_io_uring_register, make_ring(1), 2 /* REGISTER_FILES */, &fd, 1))
		die("io_uring_register");
	close(fd);
}

/* A child that is dead and that nobody waits for. */
static void corpse(void)
{
	siginfo_t info;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	if (waitid(P_PID, pid, &info, WEXITED | WNOWAIT))
		die("waitid");
}

/* A packet socket that only a mapping of its ring keeps. */
static void map_packet(void)
{
	struct tpacket_req ring = { .tp_block_size = PAGE, .tp_block_nr = 1,
				    .tp_frame_size = PAGE, .tp_frame_nr = 1 };
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)) ||
	    mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
		die("packet");
	close(fd);
}

static void make_socket(const char *kind)
{
	int family = AF_INET, type = SOCK_STREAM;

	if (kind && !strcmp(kind, "udp"))
		type = SOCK_DGRAM;
	else if (kind && !strcmp(kind, "packet"))
		family = AF_PACKET, type = SOCK_RAW;
	else if (kind && !strcmp(kind, "netlink"))
		family = AF_NETLINK, type = SOCK_RAW;
	if (socket(family, type, 0) < 0)
		die("socket");
}

static int client, server; /* of a TCP connection */

/* Both ends and the listener get the lowest free descriptors, the client's second. */
static void connect_tcp(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	client = socket(AF_INET, SOCK_STREAM, 0);
	if (listen(listener, 1) || getsockname(listener, (void *)&at, &size))
		die("listen");
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(client, (void *)&at, size))
		die("connect");
	server = accept(listener, NULL, NULL);
}

/* The same by a process in another cgroup, which this one is never in. */
static void connect_in(const char *directory)
{
	int first = dup(0), status;

	close(first);
	pid_t pid = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		join(directory);
		connect_tcp();
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		die("clone");
	client = first + 1;
	server = first + 2;
}

/* Close the client's end while it has more to send than the server will take. */
static void orphan(void)
{
	static char buffer[1 << 16];

	while (send(client, buffer, sizeof(buffer), MSG_DONTWAIT) > 0)
		;
	close(client);
}

/* Fill the connection, a datagram socket or a pair until no more is taken. */
static void unread(const char *kind)
{
	static char buffer[1 << 15];
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	int pair[2] = { client, -1 };

	if (!strcmp(kind, "udp")) {
		pair[0] = socket(AF_INET, SOCK_DGRAM, 0);
		if (bind(pair[0], (void *)&at, size) ||
		    getsockname(pair[0], (void *)&at, &size) ||
		    connect(pair[0], (void *)&at, size))
			die("bind");
		for (int i = 0; i < 64; i++) /* what is too much is dropped */
			send(pair[0], buffer, 4000, MSG_DONTWAIT);
		return;
	}
	if (!strcmp(kind, "unix") && socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("socketpair");
	while (send(pair[0], buffer, sizeof(buffer), MSG_DONTWAIT) > 0)
		;
}

/* Open nowhere any more: sent to a socket that nobody reads. */
static void send_away(int fd)
{
	int pair[2];
	char room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { "x", 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1,
				  .msg_control = room,
				  .msg_controllen = sizeof(room) };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &fd, sizeof(fd));
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) ||
	    sendmsg(pair[0], &message, 0) != 1)
		die("sendmsg");
	close(fd);
}

static void send_inotify(const char *path)
{
	int fd = inotify_init();

	if (inotify_add_watch(fd, path, IN_CREATE) < 0)
		die(path);
	send_away(fd);
}

/* A memfd of this size, all of it written, that nobody maps. */
static int fill_memfd(size_t size, int flags)
{
	static char page[LARGEST_PAGE] = { 1 };
	int fd = memfd_create("object", flags);

	for (size_t done = 0; done < size; done += PAGE)
		write_all(fd, page, PAGE);
	return fd;
}

/* The pages of a memfd, which is closed, are a DMA buffer's. */
static void make_udmabuf(size_t size)
{
	struct udmabuf_create create = { .memfd = fill_memfd(size, MFD_ALLOW_SEALING),
					 .size = size };
	int fd = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	if (fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK) ||
	    ioctl(fd, UDMABUF_CREATE, &create) < 0)
		die("udmabuf");
	close(create.memfd);
	close(fd);
}

/* A pipe with this much in it that nobody reads. */
static void fill_pipe(size_t size)
{
	static char page[LARGEST_PAGE] = { 1 };
	int fds[2];

	if (pipe(fds))
		die("pipe");
	for (size_t done = 0; done < size; done += PAGE)
		write_all(fds[1], page, PAGE);
}

static void make_aio(int events)
{
	static unsigned long context;

	if (syscall(SYS_io_setup, events, &context))
		die("io_setup");
}

/* A perf event of a cgroup, which holds the cgroup and not its memcg. */
static void watch(const char *directory)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE,
					.config = PERF_COUNT_SW_CPU_CLOCK,
					.size = sizeof(attr) };
	int fd = open(directory, O_RDONLY);

	if (syscall(SYS_perf_event_open, &attr, fd, 0, -1, PERF_FLAG_PID_CGROUP) < 0)
		die(directory);
	close(fd);
}

/* argument: NAME:PATH, the namespace of this name (of /proc/self/ns) and a new file */
static void keep_namespace(char *argument)
{
	char from[64], *path = strchr(argument, ':');

	*path++ = 0;
	snprintf(from, sizeof(from), "/proc/self/ns/%s", argument);
	close(open(path, O_WRONLY | O_CREAT, 0600));
	if (mount(from, path, NULL, MS_BIND, NULL))
		die(path);
}

/* Into the network namespace of process 1, while the one it was in is kept open. */
static void leave_network(void)
{
	int fd = open("/proc/1/ns/net", O_RDONLY);

	if (open("/proc/self/ns/net", O_RDONLY) < 0 || setns(fd, CLONE_NEWNET))
		die("setns");
	close(fd);
}

/* cgroup v1: an eventfd for the usage of the memcg at DIRECTORY. */
static void event(const char *directory)
{
	char path[4096], line[64];
	int fd, usage;

	snprintf(path, sizeof(path), "%s/memory.usage_in_bytes", directory);
	usage = open(path, O_RDONLY);
	snprintf(line, sizeof(line), "%d %d 4096", eventfd(0, 0), usage);
	snprintf(path, sizeof(path), "%s/cgroup.event_control", directory);
	fd = open(path, O_WRONLY);
	if (usage < 0 || fd < 0)
		die(path);
	write_all(fd, line, strlen(line));
	close(fd);
	close(usage);
}

static void on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

/* argument: SIZE:NAME; the descriptor stays open */
static void map_memfd(char *argument)
{
	int fd = memfd_create(strchr(argument, ':') + 1, 0);

	if (fd < 0 || ftruncate(fd, size_of(argument)))
		die("memfd_create");
	map(size_of(argument), MAP_SHARED, fd);
}

/* Pages of which no two are alike, and none compresses. */
static uint64_t noise(uint64_t seed, uint64_t at)
{
	uint64_t x = (seed << 32 | at) * 0x9e3779b97f4a7c15; /* as splitmix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

/* Prints a line for "lab verify": where this is. */
static void fill(unsigned long seed)
{
	uint64_t *words = (void *)region;

	for (size_t i = 0; i < region_size / 8; i++)
		words[i] = noise(seed, i);
	dprintf(1, "%d %lx %zu %lu\n", getpid(), (long)region, region_size, seed);
}

/* argument: OFFSET:SIZE; what follows works upon this part of the region alone */
static void narrow(char *argument)
{
	region += size_of(argument);
	region_size = size_of(strchr(argument, ':') + 1);
}

/* argument: SIZE or SIZE:KEY */
static void map_sysv(char *argument)
{
	char *key = strchr(argument, ':');
	size_t size = size_of(argument);
	int id = shmget(key ? strtol(key + 1, NULL, 0) : 0x1234abcd, size,
			IPC_CREAT | 0600);

	region = shmat(id, NULL, 0);
	region_size = size;
	if (region == (void *)-1)
		die("shmat");
}

/* The parent stays as it is, the child goes on with the next word. */
static void leave_parent(void)
{
	int null = open("/dev/null", O_RDWR);

	if (fork() == 0)
		return;
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	for (;;)
		pause();
}

/* Processes that are forked here, then go elsewhere and stay. */
static void crowd(char *argument)
{
	int n = strtoul(argument, &argument, 0);

	if (*argument++ != ':')
		die("crowd=N:DIRECTORY");
	while (n--)
		if (fork() == 0) {
			for (int fd = 0; fd < 3; fd++)
				close(fd);
			join(argument);
			for (;;)
				pause();
		}
}

static void hugetlb_file(char *argument)
{
	char *path = strchr(argument, ':');
	int fd;

	if (!path)
		die("hugetlb-file=SIZE:PATH");
	*path++ = 0;
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, size_of(argument)))
		die(path);
	map(size_of(argument), MAP_SHARED, fd);
}

static void *wait_forever(void *nothing)
{
	for (;;)
		pause();
	return nothing;
}

static void start_threads(int n)
{
	pthread_t thread;

	while (n--)
		if (pthread_create(&thread, NULL, wait_forever, NULL))
			die("pthread_create");
}

static int leaderless; /* the first thread ends, another stays */

static int stay(void *nothing)
{
	for (int i = 0; i < 3; i++)
		close(i);
	wait_forever(nothing);
	return 0;
}

static void perform(char *word);
static char **rest; /* words to come */

static int held; /* where to write that all words are performed */

static void *perform_rest(void *nothing)
{
	while (*rest)
		perform(*rest++);
	write_all(held, "", 1);
	close(held);
	int null = open("/dev/null", O_RDWR);
	for (int i = 0; i < 3; i++)
		dup2(null, i);
	if (leaderless) {
		start_threads(1);
		syscall(SYS_exit, 0);
	}
	return wait_forever(nothing);
}

/* The first thread of the process ends; another one performs the words to come. */
static void end_leader(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, perform_rest, NULL))
		die("pthread_create");
	syscall(SYS_exit, 0);
}

/* Another process with the same memory. */
static void share_memory(void)
{
	static char stack[1 << 14] __attribute__((aligned(16)));

	if (clone(stay, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL) < 0)
		die("clone");
}

/* References that are no pins: pages of the region wait in a pipe. */
static void splice_region(void)
{
	struct iovec data = { region, region_size };
	int fds[2];

	if (pipe(fds) || vmsplice(fds[1], &data, 1, 0) != (ssize_t)region_size)
		die("vmsplice");
}

/* argument: OFFSET:SIZE:PATH */
static void map_part(char *argument)
{
	char *size = strchr(argument, ':') + 1, *path = strchr(size, ':') + 1;
	int fd = open(path, O_RDWR);

	if (fd < 0)
		die(path);
	region_size = size_of(size);
	region = mmap(NULL, region_size, PROT_READ, MAP_SHARED, fd, size_of(argument));
	if (region == MAP_FAILED)
		die(path);
	close(fd);
}

/* argument: FROM:TO */
static void bind_mount(char *argument)
{
	char *to = strchr(argument, ':');

	*to++ = 0;
	if (mount(argument, to, NULL, MS_BIND, NULL))
		die(to);
}

/* argument: DIRECTORY:TO, with lower, upper and work in DIRECTORY */
static void mount_overlay(char *argument)
{
	char options[4096], *to = strchr(argument, ':');

	*to++ = 0;
	snprintf(options, sizeof(options), "lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work",
		 argument, argument, argument);
	if (mount("overlay", to, "overlay", 0, options))
		die(to);
}

static void perform(char *word)
{
	char *arg = strchr(word, '=');

#define IS(name) !strcmp(word, name)
	if (arg)
		*arg++ = 0;
	if (IS("mkdir")) {
		if (mkdir(arg, 0755))
			die(arg);
	} else if (IS("join"))
		join(arg);
	else if (IS("cpu"))
		on_cpu(atoi(arg));
	else if (IS("anon"))
		map(size_of(arg), MAP_PRIVATE | MAP_ANONYMOUS, -1);
	else if (IS("shared"))
		map(size_of(arg), MAP_SHARED | MAP_ANONYMOUS, -1);
	else if (IS("map"))
		map_file(arg, MAP_SHARED);
	else if (IS("private"))
		map_file(arg, MAP_PRIVATE);
	else if (IS("map-part"))
		map_part(arg);
	else if (IS("touch"))
		touch(1);
	else if (IS("look"))
		touch(0);
	else if (IS("huge"))
		advise(MADV_HUGEPAGE);
	else if (IS("pageout"))
		advise(MADV_PAGEOUT);
	else if (IS("lock")) {
		if (mlock(region, region_size))
			die("mlock");
	} else if (IS("read"))
		read_file(arg, O_NOATIME);
	else if (IS("read-atime"))
		read_file(arg, 0);
	else if (IS("write"))
		write_file(arg);
	else if (IS("fallocate"))
		reserve(arg);
	else if (IS("fsync"))
		sync_file(arg);
	else if (IS("sleep"))
		usleep(1000 * atoi(arg));
	else if (IS("swapon"))
		swap_on(arg);
	else if (IS("forget"))
		forget(arg);
	else if (IS("resident"))
		resident(arg);
	else if (IS("remove")) {
		if (unlink(arg))
			die(arg);
	} else if (IS("xattr")) { /* NAME=VALUE:PATH */
		char *value = strchr(arg, '='), *path = strchr(arg, ':');
		*value++ = *path++ = 0;
		if (setxattr(path, arg, value, strlen(value), 0))
			die(path);
	} else if (IS("clock")) {
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		printf("%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec);
	} else if (IS("socket"))
		make_socket(arg);
	else if (IS("connect"))
		connect_tcp();
	else if (IS("connect-in"))
		connect_in(arg);
	else if (IS("send")) {
		if (send(client, arg, strlen(arg), 0) < 0)
			die("send");
	} else if (IS("orphan"))
		orphan();
	else if (IS("inotify")) {
		if (inotify_add_watch(inotify_init(), arg, IN_CREATE) < 0)
			die(arg);
	} else if (IS("send-inotify"))
		send_inotify(arg);
	else if (IS("send-memfd"))
		send_away(fill_memfd(size_of(arg), 0));
	else if (IS("fix-inotify"))
		fix_inotify(arg);
	else if (IS("map-packet"))
		map_packet();
	else if (IS("udmabuf"))
		make_udmabuf(size_of(arg));
	else if (IS("pipe"))
		fill_pipe(size_of(arg));
	else if (IS("ring"))
		make_ring(atoi(arg));
	else if (IS("aio"))
		make_aio(atoi(arg));
	else if (IS("watch"))
		watch(arg);
	else if (IS("fanotify")) {
		if (fanotify_init(FAN_CLASS_NOTIF, 0) < 0)
			die("fanotify_init");
	} else if (IS("event"))
		event(arg);
	else if (IS("corpse"))
		corpse();
	else if (IS("cgroupns")) {
		if (unshare(CLONE_NEWCGROUP))
			die("unshare");
	} else if (IS("netns")) {
		if (unshare(CLONE_NEWNET))
			die("unshare");
	} else if (IS("leave-netns"))
		leave_network();
	else if (IS("keep-ns"))
		keep_namespace(arg);
	else if (IS("end-leader"))
		end_leader();
	else if (IS("pin"))
		pin();
	else if (IS("open")) {
		if (open(arg, O_RDONLY | O_NOATIME) < 0)
			die(arg);
	} else if (IS("memfd"))
		map_memfd(arg);
	else if (IS("sysv"))
		map_sysv(arg);
	else if (IS("detach")) {
		if (shmdt(region))
			die("shmdt");
	} else if (IS("unmap")) {
		if (munmap(region, region_size))
			die("munmap");
	} else if (IS("fill"))
		fill(strtoul(arg, NULL, 0));
	else if (IS("window"))
		narrow(arg);
	else if (IS("same"))
		memset(region, 7, region_size);
	else if (IS("merge"))
		advise(MADV_MERGEABLE);
	else if (IS("free"))
		advise(MADV_FREE);
	else if (IS("crowd"))
		crowd(arg);
	else if (IS("hugetlb"))
		map(size_of(arg), MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	else if (IS("hugetlb-file"))
		hugetlb_file(arg);
	else if (IS("unread"))
		unread(arg);
	else if (IS("fork"))
		leave_parent();
	else if (IS("split")) {
		/* A huge page is mapped page by page then. */
		if (mprotect(region, region_size / 2, PROT_READ))
			die("mprotect");
	} else if (IS("share-memory"))
		share_memory();
	else if (IS("splice"))
		splice_region();
	else if (IS("threads"))
		start_threads(atoi(arg));
	else if (IS("leaderless"))
		leaderless = 1;
	else if (IS("mountns")) {
		if (unshare(CLONE_NEWNS) || mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL))
			die("unshare");
	} else if (IS("bind"))
		bind_mount(arg);
	else if (IS("overlay"))
		mount_overlay(arg);
	else if (IS("chroot")) {
		if (chroot(arg) || chdir("/"))
			die(arg);
	} else {
		errno = EINVAL;
		die(word);
	}
}

/* With the word "hold" at the end the process stays; its pid is printed. */
static int perform_all(int argc, char **argv)
{
	int fds[2];
	char done;

	if (!argc || strcmp(argv[argc - 1], "hold")) {
		for (int i = 0; i < argc; i++)
			perform(argv[i]);
		return 0;
	}
	if (pipe(fds))
		die("pipe");
	pid_t pid = fork();
	if (pid) {
		close(fds[1]);
		if (read(fds[0], &done, 1) != 1)
			return 1;
		printf("%d\n", pid);
		return 0;
	}
	setsid();
	held = fds[1];
	argv[argc - 1] = NULL;
	rest = argv;
	perform_rest(NULL);
	return 0;
}

/* --- count ------------------------------------------------------------- */

/* Documentation/admin-guide/mm/pagemap.rst */
#define KPF(n) (1ULL << (n))
enum {
	REFERENCED = 2, UPTODATE = 3, DIRTY = 4, LRU = 5, SLAB = 7, WRITEBACK = 8,
	BUDDY = 10, MMAP = 11, ANON = 12, SWAPBACKED = 14, HEAD = 15, TAIL = 16,
	HUGE = 17, UNEVICTABLE = 18, NOPAGE = 20, PGTABLE = 26,
};

enum class { FILE_, SHMEM, ANON_, KERNEL, HUGETLB, CLASSES };

struct tally {
	uint64_t ino, pages[CLASSES], folios[CLASSES];
};

static enum class class_of(uint64_t flags)
{
	if (flags & KPF(HUGE))
		return HUGETLB;
	if (flags & KPF(ANON))
		return ANON_;
	if (flags & KPF(SWAPBACKED))
		return SHMEM;
	if (flags & (KPF(LRU) | KPF(UPTODATE) | KPF(DIRTY) | KPF(WRITEBACK) |
		     KPF(UNEVICTABLE) | KPF(REFERENCED)))
		return FILE_;
	return KERNEL;
}

static struct tally all[8192]; /* as many cgroups as one guest has online */
static size_t n_all;

static struct tally *tally_of(uint64_t ino)
{
	for (size_t i = 0; i < n_all; i++)
		if (all[i].ino == ino)
			return &all[i];
	if (n_all == sizeof(all) / sizeof(*all))
		die("too many cgroups");
	all[n_all].ino = ino;
	return &all[n_all++];
}

/*
 * One line a cgroup: ino, pages of file, shmem, anon, kernel, hugetlb, folios of the
 * same. Tail pages follow their head: the files give a tail
 * its own (empty) flags and no cgroup on most kernels.
 */
static int count(void)
{
	enum { BATCH = 8192 };
	static uint64_t flags[BATCH], inos[BATCH];
	int flags_fd = open("/proc/kpageflags", O_RDONLY);
	int inos_fd = open("/proc/kpagecgroup", O_RDONLY);
	struct tally *head = NULL;
	enum class class = KERNEL;
	off_t at = 0;
	ssize_t got;

	if (flags_fd < 0 || inos_fd < 0)
		die("/proc/kpage*");
	while ((got = pread(flags_fd, flags, sizeof(flags), at)) > 0) {
		if (pread(inos_fd, inos, got, at) != got)
			die("/proc/kpagecgroup");
		at += got;
		for (ssize_t i = 0; i < got / 8; i++) {
			uint64_t f = flags[i];

			if (f & (KPF(NOPAGE) | KPF(BUDDY) | KPF(SLAB)))
				head = NULL;
			else if (f & KPF(TAIL)) {
				if (head)
					head->pages[class]++;
			} else if (inos[i]) {
				class = class_of(f);
				head = tally_of(inos[i]);
				head->pages[class]++;
				head->folios[class]++;
			} else
				head = NULL;
		}
	}
	for (size_t i = 0; i < n_all; i++) {
		struct tally *t = &all[i];
		printf("%lu", t->ino);
		for (int c = 0; c < CLASSES; c++)
			printf(" %lu", t->pages[c]);
		for (int c = 0; c < CLASSES; c++)
			printf(" %lu", t->folios[c]);
		printf("\n");
	}
	return 0;
}

/* --- files ------------------------------------------------------------- */

/* For each path a line "inode size", then size bytes of content; "0 0": no such. */
static int files(char **paths)
{
	static char buffer[1 << 20];

	for (; *paths; paths++) {
		struct stat st = { 0 };
		size_t used = 0;
		ssize_t n;
		int fd = open(*paths, O_RDONLY);

		if (fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode))
			while ((n = read(fd, buffer + used, sizeof(buffer) - used)) > 0)
				used += n;
		close(fd);
		printf("%lu %zu\n", st.st_ino, used);
		fwrite(buffer, 1, used, stdout);
	}
	return 0;
}

/* --- many -------------------------------------------------------------- */

/* N times: mkdir, a process in it writes EACH files of its own, of a page, rmdir. */
static int many(const char *directory, int first, int n, const char *files, int each)
{
	char path[4096], file[4096];

	for (int i = first; i < first + n; i++) {
		snprintf(path, sizeof(path), "%s/m%05d", directory, i);
		if (mkdir(path, 0755))
			die(path);
		pid_t pid = fork();
		if (!pid) {
			join(path);
			for (int j = 0; j < each; j++) {
				snprintf(file, sizeof(file), "%lu:%s/m%05d.%d", PAGE,
					 files, i, j);
				write_file(file);
			}
			_exit(0);
		}
		int status;
		waitpid(pid, &status, 0);
		if (status)
			return 1;
		while (rmdir(path))
			if (errno != EBUSY)
				die(path);
	}
	return 0;
}

/* --- frames and pagemap -------------------------------------------------- */

/* A line "PFN CGROUP FLAGS COUNT" for each frame charged to a cgroup, tails too. */
static int frames(void)
{
	enum { BATCH = 8192 };
	static uint64_t flags[BATCH], inos[BATCH], counts[BATCH];
	int flags_fd = open("/proc/kpageflags", O_RDONLY);
	int inos_fd = open("/proc/kpagecgroup", O_RDONLY);
	int counts_fd = open("/proc/kpagecount", O_RDONLY);
	uint64_t head = 0;
	off_t at = 0;
	ssize_t got;

	if (flags_fd < 0 || inos_fd < 0 || counts_fd < 0)
		die("/proc/kpage*");
	while ((got = pread(flags_fd, flags, sizeof(flags), at)) > 0) {
		if (pread(inos_fd, inos, got, at) != got ||
		    pread(counts_fd, counts, got, at) != got)
			die("/proc/kpage*");
		for (ssize_t i = 0; i < got / 8; i++) {
			if (flags[i] & (KPF(NOPAGE) | KPF(BUDDY) | KPF(SLAB)))
				head = 0;
			else if (!(flags[i] & KPF(TAIL)))
				head = inos[i];
			if (head)
				printf("%lu %lu %lx %lu\n", at / 8 + i, head, flags[i],
				       counts[i]);
		}
		at += got;
	}
	return 0;
}

/* A line "PID ADDRESS ENTRY" for each page that a process maps or has swapped. */
static int pagemap(char **pids)
{
	static char line[8192];
	static uint64_t entries[1 << 16];

	for (; *pids; pids++) {
		char path[64];
		unsigned long start, end;

		snprintf(path, sizeof(path), "/proc/%s/pagemap", *pids);
		int fd = open(path, O_RDONLY);
		snprintf(path, sizeof(path), "/proc/%s/maps", *pids);
		FILE *maps = fopen(path, "r");
		if (fd < 0 || !maps)
			continue; /* it is gone */
		while (fgets(line, sizeof(line), maps)) {
			if (sscanf(line, "%lx-%lx", &start, &end) != 2)
				continue;
			for (; start < end; start += sizeof(entries) / 8 * PAGE) {
				size_t n = (end - start) / PAGE;
				if (n > sizeof(entries) / 8)
					n = sizeof(entries) / 8;
				ssize_t got = pread(fd, entries, n * 8, start / PAGE * 8);
				for (ssize_t i = 0; i < got / 8; i++)
					if (entries[i] >> 62)
						printf("%s %lx %lx\n", *pids,
						       start + i * PAGE, entries[i]);
			}
		}
		fclose(maps);
		close(fd);
	}
	return 0;
}

/* --- verify -------------------------------------------------------------- */

/* The memory of a process by one of its threads that has not ended. */
static ssize_t read_memory(int pid, unsigned long at, void *buffer, size_t size)
{
	char path[300];
	struct dirent *entry;
	ssize_t n = -1;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	DIR *tasks = opendir(path);
	while (n != (ssize_t)size && tasks && (entry = readdir(tasks))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/mem", pid, entry->d_name);
		int fd = open(path, O_RDONLY);
		n = pread(fd, buffer, size, at);
		close(fd);
	}
	if (tasks)
		closedir(tasks);
	return n;
}

/* A line for each process that lacks some of what it had written. */
static int verify(const char *path)
{
	unsigned long at, seed;
	size_t size;
	int pid;
	FILE *notes = fopen(path, "r");

	while (notes && fscanf(notes, "%d %lx %zu %lu", &pid, &at, &size, &seed) == 4) {
		uint64_t *had = malloc(size);
		size_t wrong = 0;

		if (read_memory(pid, at, had, size) != (ssize_t)size) {
			printf("process %d: %zu bytes cannot be read\n", pid, size);
			continue;
		}
		for (size_t i = 0; i < size / 8; i++)
			wrong += had[i] != noise(seed, i);
		if (wrong)
			printf("process %d: %zu of %zu words differ\n", pid, wrong, size / 8);
		free(had);
	}
	return 0;
}

int main(int argc, char **argv)
{
	PAGE = sysconf(_SC_PAGESIZE);
	if (argc == 3 && !strcmp(argv[1], "agent"))
		agent(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "do"))
		return perform_all(argc - 2, argv + 2);
	if (argc == 2 && !strcmp(argv[1], "page"))
		return printf("%lu\n", PAGE) < 0;
	if (argc == 2 && !strcmp(argv[1], "count"))
		return count();
	if (argc > 1 && !strcmp(argv[1], "files"))
		return files(argv + 2);
	if (argc == 2 && !strcmp(argv[1], "frames"))
		return frames();
	if (argc > 2 && !strcmp(argv[1], "pagemap"))
		return pagemap(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "verify"))
		return verify(argv[2]);
	if (argc == 7 && !strcmp(argv[1], "many"))
		return many(argv[2], atoi(argv[3]), atoi(argv[4]), argv[5],
			    atoi(argv[6]));
	dprintf(2, "usage: lab agent|do|count|frames|pagemap|files|many ...\n");
	return 2;
}
