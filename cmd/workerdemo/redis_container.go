//go:build container

package main

// startRedis fails: the program in the image is small, and has its Redis next door.
func startRedis() (url string, stop func(), err error) {
	return "", nil, &usageError{"-redis is missing: this build brings no Redis along"}
}
