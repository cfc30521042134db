package ufs

import "strings"

// ValidPath reports whether path may name a file or directory of a store: the
// root "", or components of any bytes but "/" and NUL, none of them empty, "."
// or "..", separated by single slashes.
func ValidPath(path string) bool {
	if path == "" {
		return true
	}
	if strings.IndexByte(path, 0) >= 0 {
		return false
	}
	for {
		name, rest, more := strings.Cut(path, "/")
		if name == "" || name == "." || name == ".." {
			return false
		}
		if !more {
			return true
		}
		path = rest
	}
}

// Join returns the path of name in the directory dir.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
