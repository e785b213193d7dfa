// Load for OpenAI chat completions, in a closed loop of connections, measured to the microsecond; one JSON line out.
//
//   sse_load -u http://127.0.0.1:PORT/path -c CONNECTIONS -d SECONDS [-w WARM_UP_SECONDS] [-s] [-n TOKENS] [-p PACE_MS]
//            [-S] [-B] [-m MODEL] [-H 'Header: value']... [-P LABEL=PID[+]]... [-b PROMPT_BYTES]
//
//   -s stream   -S the engine's tokens leave on a shared clock   -B the engine answers in one write
//   -P measures the processor time and the memory of a process over the window, with `+` of all its descendants too
//
// It asks fake_engine.c (through whatever stands in front of it) and reads the time that is stamped on every token.
// A stream counts as good when all its tokens came, then [DONE]. A stream is stalled when it brings nothing for a second.
// Every reading falls into the window of -d seconds that begins when every connection has been at work for -w seconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 4000, MAX_GROUPS = 16, MAX_PROCESSES = 1024, MAX_EVENTS = 512, LINE_ROOM = 16384 };
static const uint64_t SECOND = 1000000000ull, RETRY_NS = 10000000ull;

struct samples {
    uint32_t *microseconds;
    size_t count, room;
};

enum body_state { HEADERS, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE };

struct connection {
    int fd;
    bool asking, done_seen, close_after;
    enum body_state state;
    int status, tokens;
    long left;  // bytes of the chunk or of the sized body
    uint64_t start_ns, asked_ns, token_ns;
    size_t head_length, line_length, size_length;
    char head[8192], line[LINE_ROOM], size[32];
};

struct group {
    char label[64];
    int pid;
    bool tree;
    uint64_t cpu_start_ns, cpu_end_ns;
    long rss_kib;
};

static struct {
    const char *url, *model;
    char host[256], path[1024], headers[8192];
    int connections, tokens, pace_ms, prompt_bytes;
    double seconds, warm_up;
    bool stream, step, burst;
} options = {.model = "fake", .connections = 1, .tokens = 64, .seconds = 5, .warm_up = 1};

static struct group groups[MAX_GROUPS];
static int group_count, poller;
static struct connection *connections;
static struct sockaddr_in address;
static char *request;
static size_t request_length;
static uint64_t window_start, window_end;
static struct samples first_token, transit, gap, whole;
static uint64_t tokens_in_window, requests_in_window, bad, refused, stalls;

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void usage(const char *why) {
    fprintf(stderr, "sse_load: %s; see the head of sse_load.c\n", why);
    exit(2);
}

// --- samples ----------------------------------------------------------------------------------------------------

static void note(struct samples *samples, uint64_t ns) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 65536;
        samples->microseconds = realloc(samples->microseconds, samples->room * sizeof(uint32_t));
        if (!samples->microseconds) abort();
    }
    uint64_t microseconds = ns / 1000;
    samples->microseconds[samples->count++] = microseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)microseconds;
}

static int by_size(const void *a, const void *b) {
    uint32_t first = *(const uint32_t *)a, second = *(const uint32_t *)b;
    return (first > second) - (first < second);
}

static double quantile_ms(const struct samples *samples, double part) {
    return samples->count ? samples->microseconds[(size_t)(part * (samples->count - 1))] / 1e3 : -1;
}

static void print_samples(const char *name, struct samples *samples) {
    qsort(samples->microseconds, samples->count, sizeof(uint32_t), by_size);
    printf(",\"%s_ms\":{\"count\":%zu,\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f}", name, samples->count,
           quantile_ms(samples, 0.5), quantile_ms(samples, 0.99), quantile_ms(samples, 1));
}

// --- processes --------------------------------------------------------------------------------------------------

static size_t read_file(char *text, size_t room, const char *format, int pid, int thread) {
    char path[128];
    snprintf(path, sizeof path, format, pid, thread);
    FILE *file = fopen(path, "r");
    size_t length = file ? fread(text, 1, room - 1, file) : 0;
    if (file) fclose(file);
    text[length] = 0;
    return length;
}

// Nanoseconds on a processor so far, over all threads; exact, where the clock ticks of /proc/PID/stat are not.
static uint64_t cpu_ns(int pid) {
    char path[64], text[256];
    uint64_t total = 0;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (entry->d_name[0] != '.' && read_file(text, sizeof text, "/proc/%d/task/%d/schedstat", pid, atoi(entry->d_name)))
            total += strtoull(text, NULL, 10);
    if (folder) closedir(folder);
    return total;
}

static long rss_kib(int pid) {
    char text[256];
    long pages = 0;
    if (read_file(text, sizeof text, "/proc/%d/statm", pid, 0)) sscanf(text, "%*d %ld", &pages);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

// The process and, for a tree, everything below it; returns how many.
static int members(const struct group *group, int *pids) {
    static int pid[32768], parent[32768];
    int found = 1, all = 0;
    pids[0] = group->pid;
    if (!group->tree) return 1;
    DIR *folder = opendir("/proc");
    for (struct dirent *entry; folder && (entry = readdir(folder)) && all < 32768;) {
        char text[1024], *end;
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
        pid[all] = atoi(entry->d_name);
        if (read_file(text, sizeof text, "/proc/%d/stat", pid[all], 0) && (end = strrchr(text, ')')) &&
            sscanf(end + 1, " %*c %d", &parent[all]) == 1)
            all++;
    }
    if (folder) closedir(folder);
    for (int next = 0; next < found; next++)
        for (int i = 0; i < all && found < MAX_PROCESSES; i++)
            if (parent[i] == pids[next]) pids[found++] = pid[i];
    return found;
}

static void measure_groups(bool end) {
    static int pids[MAX_PROCESSES];
    for (struct group *group = groups; group < groups + group_count; group++) {
        uint64_t total = 0;
        int count = members(group, pids);
        group->rss_kib = 0;
        for (int i = 0; i < count; i++) {
            total += cpu_ns(pids[i]);
            group->rss_kib += rss_kib(pids[i]);
        }
        *(end ? &group->cpu_end_ns : &group->cpu_start_ns) = total;
    }
}

// --- asking -----------------------------------------------------------------------------------------------------

static void hang_up(struct connection *connection) {
    if (connection->fd >= 0) close(connection->fd);
    connection->fd = -1;
    connection->asking = false;
}

static void fail_to_ask(struct connection *connection, uint64_t now) {
    refused++;
    hang_up(connection);
    connection->start_ns = now + RETRY_NS;
}

static bool dial(struct connection *connection) {
    int on = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)&address, sizeof address)) return false;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    return epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event) == 0;
}

static void ask(struct connection *connection) {
    if (connection->fd < 0 && !dial(connection)) {
        fail_to_ask(connection, now_ns());
        return;
    }
    connection->state = HEADERS;
    connection->status = connection->tokens = 0;
    connection->head_length = connection->line_length = connection->size_length = 0;
    connection->done_seen = connection->close_after = false;
    connection->asking = true;
    connection->asked_ns = now_ns();
    connection->token_ns = 0;
    for (size_t sent = 0; sent < request_length;) {
        ssize_t count = send(connection->fd, request + sent, request_length - sent, MSG_NOSIGNAL);
        if (count <= 0) {
            fail_to_ask(connection, now_ns());
            return;
        }
        sent += count;
    }
}

static void finish(struct connection *connection, uint64_t now, bool complete) {
    if (!connection->asking) return;
    connection->asking = false;
    int expected = options.stream ? options.tokens : 1;
    bool good = complete && connection->status == 200 && connection->tokens == expected &&
                (!options.stream || connection->done_seen);
    bool in_window = now >= window_start && now < window_end;
    if (!good) {
        if (bad++ < 3)
            fprintf(stderr, "bad answer: status %d, %d tokens, last line %.200s\n", connection->status,
                    connection->tokens, connection->line);
    } else if (in_window) {
        requests_in_window++;
        note(&whole, now - connection->asked_ns);
    }
    if (connection->close_after || !complete) hang_up(connection);
    connection->start_ns = good ? now : now + RETRY_NS;
}

// --- reading ----------------------------------------------------------------------------------------------------

static void take_token(struct connection *connection, uint64_t stamped_ns, uint64_t now) {
    bool in_window = now >= window_start && now < window_end;
    uint64_t before = connection->token_ns ? connection->token_ns : connection->asked_ns;
    if (in_window) {
        tokens_in_window++;
        note(connection->token_ns ? &gap : &first_token, now - before);
        note(&transit, now > stamped_ns ? now - stamped_ns : 0);
        if (now - before > SECOND) stalls++;
    }
    connection->token_ns = now;
    connection->tokens++;
}

static void take_line(struct connection *connection, uint64_t now) {
    connection->line[connection->line_length] = 0;
    const char *stamp = strstr(connection->line, "@T");
    if (stamp)
        take_token(connection, strtoull(stamp + 2, NULL, 16), now);
    else if (!strncmp(connection->line, "data: [DONE]", 12))
        connection->done_seen = true;
    connection->line_length = 0;
}

static void take_body(struct connection *connection, const char *data, size_t length, uint64_t now) {
    while (length) {
        const char *end = memchr(data, '\n', length);
        size_t part = end ? (size_t)(end - data) : length;
        size_t room = LINE_ROOM - 1 - connection->line_length;
        size_t kept = part < room ? part : room;
        memcpy(connection->line + connection->line_length, data, kept);
        connection->line_length += kept;
        if (!end) return;
        take_line(connection, now);
        data = end + 1;
        length -= part + 1;
    }
}

// Reads up to the end of the headers; returns the bytes used.
static size_t take_head(struct connection *connection, const char *data, size_t length) {
    size_t before = connection->head_length, room = sizeof connection->head - 1 - before;
    size_t part = length < room ? length : room;
    memcpy(connection->head + before, data, part);
    connection->head_length += part;
    connection->head[connection->head_length] = 0;
    char *end = strstr(connection->head, "\r\n\r\n");
    if (!end) return part;
    end[2] = 0;
    connection->status = atoi(connection->head + 9);
    connection->state = UNTIL_CLOSE;
    for (char *line = connection->head; (line = strstr(line, "\r\n")); line += 2) {
        char *field = line + 2;
        if (!strncasecmp(field, "connection: close", 17)) connection->close_after = true;
        if (!strncasecmp(field, "transfer-encoding: chunked", 26)) connection->state = CHUNK_SIZE;
        if (!strncasecmp(field, "content-length:", 15)) {
            connection->state = SIZED;
            connection->left = atol(field + 15);
        }
    }
    return end + 4 - connection->head - before;
}

// Takes one byte of a line of chunk framing; true at its end.
static bool framing_line_ends(struct connection *connection, char byte) {
    if (byte != '\n') {
        if (connection->size_length < sizeof connection->size - 1 && byte != '\r')
            connection->size[connection->size_length++] = byte;
        return false;
    }
    connection->size[connection->size_length] = 0;
    return true;
}

// Takes the next part of an answer; true when the answer is complete.
static bool take_part(struct connection *connection, const char **data, size_t *length, uint64_t now) {
    size_t used = 1;
    bool complete = false;
    switch (connection->state) {
        case HEADERS:
            used = take_head(connection, *data, *length);
            complete = connection->state == SIZED && connection->left == 0;
            break;
        case SIZED:
        case CHUNK_DATA:
            used = *length < (size_t)connection->left ? *length : (size_t)connection->left;
            take_body(connection, *data, used, now);
            connection->left -= used;
            if (connection->left == 0) {
                complete = connection->state == SIZED;
                connection->state = CHUNK_END;
            }
            break;
        case CHUNK_SIZE:
            if (framing_line_ends(connection, **data)) {
                connection->left = strtol(connection->size, NULL, 16);
                connection->state = connection->left ? CHUNK_DATA : TRAILER;
                connection->size_length = 0;
            }
            break;
        case CHUNK_END:
            if (framing_line_ends(connection, **data)) connection->state = CHUNK_SIZE;
            break;
        case TRAILER:
            if (framing_line_ends(connection, **data)) {
                complete = connection->size_length == 0;
                connection->size_length = 0;
            }
            break;
        case UNTIL_CLOSE:
            used = *length;
            take_body(connection, *data, used, now);
            break;
    }
    *data += used;
    *length -= used;
    return complete;
}

static void receive(struct connection *connection) {
    static char buffer[256 << 10];
    ssize_t count = recv(connection->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    uint64_t now = now_ns();
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) {
        bool complete = count == 0 && connection->state == UNTIL_CLOSE;
        if (complete && connection->line_length) take_line(connection, now);
        finish(connection, now, complete);
        hang_up(connection);
        return;
    }
    const char *data = buffer;
    for (size_t length = count; length && connection->asking;)
        if (take_part(connection, &data, &length, now)) {
            if (connection->line_length) take_line(connection, now);
            finish(connection, now, true);
            if (now < window_end) ask(connection);
            return;  // whatever follows the answer is not ours
        }
}

// --- the run ----------------------------------------------------------------------------------------------------

static void read_options(int count, char **arguments) {
    for (int option; (option = getopt(count, arguments, "u:c:d:w:n:p:m:b:H:P:sSB")) != -1;) switch (option) {
            case 'u': options.url = optarg; break;
            case 'c': options.connections = atoi(optarg); break;
            case 'd': options.seconds = atof(optarg); break;
            case 'w': options.warm_up = atof(optarg); break;
            case 'n': options.tokens = atoi(optarg); break;
            case 'p': options.pace_ms = atoi(optarg); break;
            case 'm': options.model = optarg; break;
            case 'b': options.prompt_bytes = atoi(optarg); break;
            case 's': options.stream = true; break;
            case 'S': options.step = true; break;
            case 'B': options.burst = true; break;
            case 'H':
                if (strlen(options.headers) + strlen(optarg) + 3 > sizeof options.headers) usage("too many headers");
                strcat(strcat(options.headers, optarg), "\r\n");
                break;
            case 'P': {
                struct group *group = &groups[group_count];
                char plus = 0;
                if (group_count++ == MAX_GROUPS) usage("too many -P");
                if (sscanf(optarg, "%63[^=]=%d%c", group->label, &group->pid, &plus) < 2) usage("-P is LABEL=PID[+]");
                group->tree = plus == '+';
                break;
            }
            default: usage("unknown option");
        }
    if (!options.url || strncmp(options.url, "http://", 7)) usage("-u http://... is missing");
    if (options.connections < 1 || options.connections > MAX_CONNECTIONS) usage("-c is out of range");
    if (options.seconds <= 0 || options.seconds > 120 || options.warm_up > 60) usage("-d or -w is out of range");
    if (options.prompt_bytes < 0 || options.prompt_bytes > 1 << 20) usage("-b is out of range");
}

static void prepare(void) {
    int port = 80, host_length = strcspn(options.url + 7, "/");
    snprintf(options.host, sizeof options.host, "%.*s", host_length, options.url + 7);
    snprintf(options.path, sizeof options.path, "%s", options.url + 7 + host_length);
    char name[256], *colon;
    strcpy(name, options.host);
    if ((colon = strchr(name, ':'))) {
        *colon = 0;
        port = atoi(colon + 1);
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, name, &address.sin_addr) != 1) usage("-u takes an IPv4 address");

    char *filler = malloc(options.prompt_bytes + 1), *body = malloc(options.prompt_bytes + 2048);
    request = malloc(options.prompt_bytes + 32768);
    for (int i = 0; i < options.prompt_bytes; i++) filler[i] = i % 6 == 5 ? ' ' : 'a' + i % 17;
    filler[options.prompt_bytes] = 0;
    int length = sprintf(body,
        "{\"model\":\"%.200s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
        "{\"role\":\"user\",\"content\":\"PACE=%d NTOK=%d STEP=%d BURST=%d %s\"}],"
        "\"max_tokens\":%d,\"temperature\":0.7%s}",
        options.model, options.pace_ms, options.tokens, options.step, options.burst, filler, options.tokens,
        options.stream ? ",\"stream\":true" : "");
    request_length = sprintf(request,
        "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: */*\r\n%sContent-Length: %d\r\n\r\n%s",
        options.path, options.host, options.headers, length, body);
}

static double own_cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// Begins what is due to begin; returns how many connections are idle.
static int begin_requests(uint64_t now) {
    int idle = 0;
    for (int i = 0; i < options.connections; i++) {
        if (connections[i].asking) continue;
        idle++;
        if (connections[i].start_ns <= now) ask(&connections[i]);
    }
    return idle;
}

static void run_until(uint64_t end) {
    struct epoll_event events[MAX_EVENTS];
    for (uint64_t now = now_ns(); now < end; now = now_ns()) {
        int idle = begin_requests(now);
        int count = epoll_wait(poller, events, MAX_EVENTS, idle ? 1 : 10);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
    }
}

// Streams that were silent when the window closed never came to the count of stalls.
static void count_silent_streams(uint64_t now) {
    for (int i = 0; i < options.connections; i++) {
        struct connection *connection = &connections[i];
        uint64_t last = connection->token_ns ? connection->token_ns : connection->asked_ns;
        if (connection->asking && now - last > SECOND) stalls++;
    }
}

static void report(double seconds, double own_seconds) {
    printf("{\"connections\":%d,\"stream\":%s,\"pace_ms\":%d,\"tokens\":%d,\"seconds\":%.3f,\"requests\":%llu,"
           "\"events\":%llu,\"bad\":%llu,\"refused\":%llu,\"stalls\":%llu,\"client_cpu\":%.3f",
           options.connections, options.stream ? "true" : "false", options.pace_ms, options.tokens, seconds,
           (unsigned long long)requests_in_window, (unsigned long long)tokens_in_window, (unsigned long long)bad,
           (unsigned long long)refused, (unsigned long long)stalls, own_seconds / seconds);
    print_samples("first_token", &first_token);
    print_samples("transit", &transit);
    print_samples("gap", &gap);
    print_samples("whole", &whole);
    printf(",\"processes\":{");
    for (int i = 0; i < group_count; i++)
        printf("%s\"%s\":{\"cpu_s\":%.6f,\"rss_mib\":%.1f}", i ? "," : "", groups[i].label,
               (groups[i].cpu_end_ns - groups[i].cpu_start_ns) / 1e9, groups[i].rss_kib / 1024.0);
    printf("}}\n");
}

int main(int count, char **arguments) {
    signal(SIGPIPE, SIG_IGN);
    read_options(count, arguments);
    prepare();
    struct rlimit files = {8192, 8192};
    setrlimit(RLIMIT_NOFILE, &files);
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc(options.connections, sizeof *connections);

    // Paced streams begin spread over the length of one, or all would end and begin together for ever.
    uint64_t now = now_ns(), spread = options.stream ? options.pace_ms * options.tokens * 1000000ull : RETRY_NS;
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        connections[i].start_ns = now + spread / options.connections * i;
    }
    window_start = window_end = UINT64_MAX;
    run_until(now + spread + (uint64_t)(options.warm_up * 1e9));

    measure_groups(false);
    double own = own_cpu_seconds();
    window_start = now_ns();
    window_end = window_start + (uint64_t)(options.seconds * 1e9);
    run_until(window_end);
    now = now_ns();
    measure_groups(true);
    count_silent_streams(now);
    report((now - window_start) / 1e9, own_cpu_seconds() - own);
    return bad || refused ? 1 : 0;
}
