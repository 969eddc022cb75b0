package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// hugePages are those that two servers' shared memory takes, 4 GB of buffers and what comes with them each ("Linux Huge Pages"; postgres -C
// shared_memory_size_in_huge_pages says 2,170 for version 15), and reserve is where Linux is told to keep them.
const (
	hugePages = 2 * 2250
	reserve   = "/proc/sys/vm/nr_hugepages"
)

// reserveHugePages sets memory aside in huge pages, which the servers then take for their buffers (huge_pages = try is PostgreSQL's default), as large
// servers are run and RDS's are by default. In small pages every new session pays a fault for each page that it comes to first, up to 12 µs
// on some virtual machines, which is then most of what a drain measures. It returns what gives the memory back. Where it can't be had, the
// servers do without, and it says so.
func reserveHugePages() (release func()) {
	before, err := os.ReadFile(reserve)
	if err != nil {
		fmt.Printf("shared buffers in small pages: %v\n", err)
		return func() {}
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(before))); err == nil && n >= hugePages {
		fmt.Println("shared buffers in huge pages")
		return func() {}
	}
	release = func() { _ = os.WriteFile(reserve, before, 0) } // what can't be given back is kept until the machine starts anew
	err = os.WriteFile(reserve, []byte(strconv.Itoa(hugePages)), 0)
	now, _ := os.ReadFile(reserve) // the kernel reserves what there is
	switch n, _ := strconv.Atoi(strings.TrimSpace(string(now))); {
	case err != nil:
		fmt.Printf("shared buffers in small pages: %v\n", err)
	case n < hugePages:
		fmt.Printf("shared buffers in small pages in part: %d huge pages of %d can be had\n", n, hugePages)
	default:
		fmt.Println("shared buffers in huge pages")
	}
	return release
}
